//! Kafka's protocol, as far as transactions of other processes need it: librdkafka cannot take one over.
//!
//! One request at a time on one connection for each broker, without TLS. What a broker says for now (it is loading, another
//! one is in charge, a transaction is being completed) is asked again until the time is over.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::error::{ParseResponseErrorCode, ResponseError};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    EndTxnRequest, EndTxnResponse, FindCoordinatorRequest, FindCoordinatorResponse, InitProducerIdRequest,
    InitProducerIdResponse, ListTransactionsRequest, ListTransactionsResponse, MetadataRequest, MetadataResponse,
    ProducerId, RequestHeader, ResponseHeader, TransactionalId,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};
use thalweg_engine::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kafka::client::failed;

/// So long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// So long a question is asked again.
const ASK: Duration = Duration::from_secs(60);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// A longer answer is none of Kafka's.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Of a coordinator of transactions.
const TRANSACTIONS: i8 = 1;
/// The timeout of a producer that only fences others.
const FENCING_TIMEOUT_MS: i32 = 60_000;

/// The newest versions of the messages that mean what is meant here: later ones of `EndTxn` and `InitProducerId` belong to
/// producers that change their epoch with each transaction, which librdkafka's do not.
const FIND_COORDINATOR: i16 = 3;
const DESCRIBE: i16 = 0;
const LIST: i16 = 0;
const END: i16 = 3;
const INIT: i16 = 4;
const METADATA: i16 = 9;

/// A request that is made here.
trait Question: Encodable + HeaderVersion {
    const KEY: ApiKey;
    type Answer: Decodable + HeaderVersion;
}

impl Question for ApiVersionsRequest {
    const KEY: ApiKey = ApiKey::ApiVersions;
    type Answer = ApiVersionsResponse;
}

impl Question for MetadataRequest {
    const KEY: ApiKey = ApiKey::Metadata;
    type Answer = MetadataResponse;
}

impl Question for FindCoordinatorRequest {
    const KEY: ApiKey = ApiKey::FindCoordinator;
    type Answer = FindCoordinatorResponse;
}

impl Question for DescribeTransactionsRequest {
    const KEY: ApiKey = ApiKey::DescribeTransactions;
    type Answer = DescribeTransactionsResponse;
}

impl Question for ListTransactionsRequest {
    const KEY: ApiKey = ApiKey::ListTransactions;
    type Answer = ListTransactionsResponse;
}

impl Question for InitProducerIdRequest {
    const KEY: ApiKey = ApiKey::InitProducerId;
    type Answer = InitProducerIdResponse;
}

impl Question for EndTxnRequest {
    const KEY: ApiKey = ApiKey::EndTxn;
    type Answer = EndTxnResponse;
}

/// What a coordinator says of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Described {
    /// `Ongoing`, `CompleteCommit`, ..
    pub(super) state: String,
    pub(super) producer_id: i64,
    pub(super) epoch: i16,
    /// When it began, in milliseconds; below 0 when none did.
    pub(super) start_ms: i64,
}

/// Why a question has no answer.
enum Failure {
    /// Worth asking again.
    ForNow(String),
    /// The broker's refusal.
    Refused(ResponseError),
    /// No other answer is to be expected.
    Final(String),
}

impl Failure {
    fn of(code: i16) -> std::result::Result<(), Self> {
        match code.err() {
            None => Ok(()),
            Some(
                error @ (ResponseError::CoordinatorLoadInProgress
                | ResponseError::CoordinatorNotAvailable
                | ResponseError::NotCoordinator
                | ResponseError::ConcurrentTransactions
                | ResponseError::RequestTimedOut
                | ResponseError::NetworkException
                | ResponseError::NotEnoughReplicas),
            ) => Err(Failure::ForNow(error.to_string())),
            Some(error) => Err(Failure::Refused(error)),
        }
    }
}

type Answer<T> = std::result::Result<T, Failure>;

/// What became of the question to end a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is committed.
    Committed,
    /// The transaction is not what it was taken for.
    Refused(ResponseError),
}

struct Connection {
    stream: TcpStream,
    versions: HashMap<i16, (i16, i16)>,
    correlation: i32,
}

/// A cluster to talk to.
pub(super) struct Cluster {
    servers: String,
    connections: HashMap<String, Connection>,
}

impl Cluster {
    /// The cluster of these brokers, `host:port` with commas between them. Nothing is asked yet.
    pub(super) fn new(servers: &str) -> Self {
        Self {
            servers: servers.to_string(),
            connections: HashMap::new(),
        }
    }

    fn failed(&self, what: &str, why: impl Display) -> thalweg_engine::EngineError {
        failed(&self.servers, format!("{what}: {why}"))
    }

    /// What there is to say of a transactional id; `None` when it is not known.
    pub(super) async fn describe(&mut self, id: &str) -> Result<Option<Described>> {
        let request = DescribeTransactionsRequest::default().with_transactional_ids(vec![transactional(id)]);
        let what = format!("cannot look at transaction '{id}'");
        let answer = self
            .persist(&what, async |cluster: &mut Self| {
                let answer = cluster.ask_coordinator(id, &request, DESCRIBE).await?;
                let Some(found) = answer.transaction_states.into_iter().next() else {
                    return Err(Failure::Final("the answer is empty".into()));
                };
                match found.error_code.err() {
                    Some(ResponseError::TransactionalIdNotFound) => return Ok(None),
                    _ => Failure::of(found.error_code)?,
                }
                Ok(Some(Described {
                    state: found.transaction_state.to_string(),
                    producer_id: found.producer_id.0,
                    epoch: found.producer_epoch,
                    start_ms: found.transaction_start_time_ms,
                }))
            })
            .await?;
        answer.map_err(|e| self.failed(&what, e))
    }

    /// Commits the transaction of a producer.
    pub(super) async fn commit(&mut self, id: &str, producer_id: i64, epoch: i16) -> Result<Ended> {
        let request = EndTxnRequest::default()
            .with_transactional_id(transactional(id))
            .with_producer_id(ProducerId(producer_id))
            .with_producer_epoch(epoch)
            .with_committed(true);
        let what = format!("cannot commit transaction '{id}'");
        let ended = self
            .persist(&what, async |cluster: &mut Self| {
                Failure::of(cluster.ask_coordinator(id, &request, END).await?.error_code)
            })
            .await?;
        Ok(match ended {
            Ok(()) => Ended::Committed,
            Err(refused) => Ended::Refused(refused),
        })
    }

    /// Aborts what is under way with this id, and makes whoever used it fail from now on. Waits until that is done.
    pub(super) async fn fence(&mut self, id: &str) -> Result<()> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(transactional(id)))
            .with_transaction_timeout_ms(FENCING_TIMEOUT_MS)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let what = format!("cannot abort transaction '{id}'");
        let fenced = self
            .persist(&what, async |cluster: &mut Self| {
                Failure::of(cluster.ask_coordinator(id, &request, INIT).await?.error_code)
            })
            .await?;
        fenced.map_err(|e| self.failed(&what, e))
    }

    /// The transactional ids that the brokers know, of all producers.
    pub(super) async fn ids(&mut self) -> Result<Vec<String>> {
        let what = "cannot list transactions";
        let request = MetadataRequest::default().with_topics(Some(Vec::new()));
        let brokers = self
            .persist(what, async |cluster: &mut Self| {
                cluster.ask_any(&request, METADATA).await
            })
            .await?
            .map_err(|e| self.failed(what, e))?
            .brokers;
        let mut ids = Vec::new();
        for broker in brokers {
            let address = address(&broker.host, broker.port);
            let listed = self
                .persist(what, async |cluster: &mut Self| {
                    let answer = cluster.ask(&address, &ListTransactionsRequest::default(), LIST).await?;
                    Failure::of(answer.error_code)?;
                    Ok(answer.transaction_states)
                })
                .await?
                .map_err(|e| self.failed(what, e))?;
            ids.extend(listed.into_iter().map(|state| state.transactional_id.0.to_string()));
        }
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Asks until there is an answer that is not for now, or the time is over.
    async fn persist<T>(
        &mut self,
        what: &str,
        mut ask: impl AsyncFnMut(&mut Self) -> Answer<T>,
    ) -> Result<std::result::Result<T, ResponseError>> {
        let mut last = String::from("no answer");
        let asked = tokio::time::timeout(ASK, async {
            loop {
                match ask(self).await {
                    Ok(answer) => return Ok(Ok(answer)),
                    Err(Failure::Refused(refused)) => return Ok(Err(refused)),
                    Err(Failure::Final(why)) => return Err(why),
                    Err(Failure::ForNow(why)) => last = why,
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await;
        match asked {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(self.failed(what, why)),
            Err(_) => Err(self.failed(what, format!("{last}, for {ASK:?}"))),
        }
    }

    async fn ask_coordinator<Q: Question>(&mut self, id: &str, request: &Q, newest: i16) -> Answer<Q::Answer> {
        let find = FindCoordinatorRequest::default()
            .with_key(StrBytes::from_string(id.to_string()))
            .with_key_type(TRANSACTIONS);
        let found = self.ask_any(&find, FIND_COORDINATOR).await?;
        Failure::of(found.error_code)?;
        self.ask(&address(&found.host, found.port), request, newest).await
    }

    /// Asks the first broker that answers.
    async fn ask_any<Q: Question>(&mut self, request: &Q, newest: i16) -> Answer<Q::Answer> {
        let servers = self.servers.clone();
        let mut failure = Failure::Final("no broker is named".into());
        for server in servers.split(',').map(str::trim).filter(|server| !server.is_empty()) {
            let server = server.rsplit_once("://").map_or(server, |(_, server)| server);
            match self.ask(server, request, newest).await {
                Err(Failure::ForNow(why)) => failure = Failure::ForNow(why),
                other => return other,
            }
        }
        Err(failure)
    }

    async fn ask<Q: Question>(&mut self, address: &str, request: &Q, newest: i16) -> Answer<Q::Answer> {
        let answer = tokio::time::timeout(ANSWER, async {
            if !self.connections.contains_key(address) {
                let connection = Connection::open(address).await?;
                self.connections.insert(address.to_string(), connection);
            }
            match self.connections.get_mut(address) {
                Some(connection) => connection.ask(request, newest).await,
                None => Err(Failure::Final("no connection".into())),
            }
        })
        .await;
        let answer = answer.unwrap_or_else(|_| Err(Failure::ForNow(format!("{address} does not answer"))));
        if answer.is_err() {
            // An answer may be under way that belongs to no later question.
            self.connections.remove(address);
        }
        answer
    }
}

fn transactional(id: &str) -> TransactionalId {
    TransactionalId(StrBytes::from_string(id.to_string()))
}

fn address(host: &str, port: i32) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

impl Connection {
    async fn open(address: &str) -> Answer<Self> {
        let refused = |e: std::io::Error| Failure::ForNow(format!("cannot connect to {address}: {e}"));
        // Without a port it is Kafka's.
        let stream = match address.contains(':') {
            true => TcpStream::connect(address).await,
            false => TcpStream::connect((address, 9092)).await,
        };
        let stream = stream.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let mut connection = Self {
            stream,
            versions: HashMap::from([(ApiVersionsRequest::KEY as i16, (0, 0))]),
            correlation: 0,
        };
        let answer = connection.ask(&ApiVersionsRequest::default(), 0).await?;
        Failure::of(answer.error_code)?;
        let versions = answer.api_keys.into_iter();
        connection.versions = versions
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect();
        Ok(connection)
    }

    async fn ask<Q: Question>(&mut self, request: &Q, newest: i16) -> Answer<Q::Answer> {
        let version = match self.versions.get(&(Q::KEY as i16)) {
            Some((oldest, latest)) if *oldest <= newest => newest.min(*latest),
            _ => {
                return Err(Failure::Final(format!(
                    "the broker does not know {:?} of version {newest}",
                    Q::KEY
                )));
            }
        };
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("thalweg")));
        let mut message = BytesMut::new();
        let encoded = header
            .encode(&mut message, Q::header_version(version))
            .and_then(|()| request.encode(&mut message, version));
        encoded.map_err(|e| Failure::Final(format!("request {:?}: {e}", Q::KEY)))?;
        let broken = |e: std::io::Error| Failure::ForNow(format!("the connection broke: {e}"));
        let length = u32::try_from(message.len()).map_err(|e| Failure::Final(e.to_string()))?;
        self.stream.write_all(&length.to_be_bytes()).await.map_err(broken)?;
        self.stream.write_all(&message).await.map_err(broken)?;
        let length = self.stream.read_u32().await.map_err(broken)? as usize;
        if length > ANSWER_BYTES_MAX {
            return Err(Failure::Final(format!(
                "an answer of {length} bytes is none of Kafka's"
            )));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(broken)?;
        let mut answer = Bytes::from(answer);
        let decoded = ResponseHeader::decode(&mut answer, Q::Answer::header_version(version));
        match decoded {
            Ok(header) if header.correlation_id == self.correlation => {}
            Ok(_) => return Err(Failure::ForNow("the answer is to another question".into())),
            Err(e) => return Err(Failure::Final(format!("an answer that is none of Kafka's: {e}"))),
        }
        Q::Answer::decode(&mut answer, version)
            .map_err(|e| Failure::Final(format!("an answer that is none of Kafka's: {e}")))
    }
}
