//! [`FaultyStore`]: an object store for tests that fails, delays, doubles and truncates requests.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::Mutex;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// A whole file.
    Put,
    /// The beginning of a file in parts.
    StartParts,
    /// A part.
    PutPart,
    /// The end of a file in parts.
    CompleteParts,
    /// Reading, and asking for a length.
    Get,
    /// Deleting a file.
    Delete,
    /// Listing.
    List,
    /// Copying.
    Copy,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not performed, and fails.
    Fail,
    /// It is performed, and its answer is lost.
    Lose,
    /// It takes longer.
    Delay(Duration),
    /// It is performed twice; the answer is the second one's. A part is sent once: sent twice, it would be another part.
    Double,
    /// So many bytes at the end are lost, of what is written or read.
    Truncate(usize),
}

#[derive(Debug, Default)]
struct Plan {
    /// Faults of the n-th request of a kind, from 0.
    at: BTreeMap<(Request, u64), Fault>,
    always: BTreeMap<Request, Fault>,
    seen: BTreeMap<Request, u64>,
    fired: u64,
}

/// A store that does to requests what it is told. For tests.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    plan: Arc<Mutex<Plan>>,
}

impl FaultyStore {
    /// A store that does everything right as long as it is not told otherwise.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            plan: Arc::default(),
        }
    }

    /// The `nth` request of this kind from now on (0 is the next) has this fault.
    pub fn at(&self, request: Request, nth: u64, fault: Fault) {
        let mut plan = self.plan.lock();
        let seen = plan.seen.get(&request).copied().unwrap_or(0);
        plan.at.insert((request, seen + nth), fault);
    }

    /// All requests of this kind have this fault.
    pub fn always(&self, request: Request, fault: Fault) {
        self.plan.lock().always.insert(request, fault);
    }

    /// From now on everything is right.
    pub fn heal(&self) {
        let mut plan = self.plan.lock();
        plan.at.clear();
        plan.always.clear();
    }

    /// How many requests have had a fault.
    pub fn fired(&self) -> u64 {
        self.plan.lock().fired
    }

    /// How many requests of this kind there were.
    pub fn seen(&self, request: Request) -> u64 {
        self.plan.lock().seen.get(&request).copied().unwrap_or(0)
    }

    /// Counts a request; its fault.
    fn count(&self, request: Request) -> Option<Fault> {
        let mut plan = self.plan.lock();
        let seen = plan.seen.entry(request).or_default();
        let number = *seen;
        *seen += 1;
        let fault = plan.at.get(&(request, number)).or(plan.always.get(&request)).copied();
        plan.fired += u64::from(fault.is_some());
        fault
    }

    /// Counts a request; its fault, unless that has happened.
    async fn enter(&self, request: Request) -> Result<Option<Fault>> {
        let fault = self.count(request);
        happen(request, fault).await?;
        Ok(fault)
    }
}

/// Fails or waits, if that is the fault.
async fn happen(request: Request, fault: Option<Fault>) -> Result<()> {
    match fault {
        Some(Fault::Fail) => Err(failure(request)),
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn failure(request: Request) -> Error {
    Error::Generic {
        store: "FaultyStore",
        source: format!("{request:?} was told to fail").into(),
    }
}

fn lose<T>(request: Request, fault: Option<Fault>, answer: T) -> Result<T> {
    match fault {
        Some(Fault::Lose) => Err(failure(request)),
        _ => Ok(answer),
    }
}

fn shortened(payload: PutPayload, fault: Option<Fault>) -> PutPayload {
    let Some(Fault::Truncate(bytes)) = fault else {
        return payload;
    };
    let left = payload.content_length().saturating_sub(bytes);
    let whole: Vec<u8> = payload.iter().flat_map(|bytes| bytes.iter().copied()).collect();
    PutPayload::from(whole[..left].to_vec())
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.enter(Request::Put).await?;
        let payload = shortened(payload, fault);
        if fault == Some(Fault::Double) {
            let first = self.inner.put_opts(location, payload.clone(), options.clone()).await;
            drop(first);
        }
        let answer = self.inner.put_opts(location, payload, options).await?;
        lose(Request::Put, fault, answer)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.enter(Request::StartParts).await?;
        if fault == Some(Fault::Double) {
            drop(self.inner.put_multipart_opts(location, options.clone()).await);
        }
        let inner = self.inner.put_multipart_opts(location, options).await?;
        let parts = Parts {
            inner,
            store: self.clone(),
        };
        lose(Request::StartParts, fault, Box::new(parts) as Box<dyn MultipartUpload>)
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.enter(Request::Get).await?;
        if fault == Some(Fault::Double) {
            drop(self.inner.get_opts(location, options.clone()).await);
        }
        let answer = self.inner.get_opts(location, options).await?;
        lose(Request::Get, fault, answer)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let fault = self.enter(Request::Get).await?;
        if fault == Some(Fault::Double) {
            drop(self.inner.get_ranges(location, ranges).await);
        }
        let mut answer = self.inner.get_ranges(location, ranges).await?;
        if let Some(Fault::Truncate(bytes)) = fault {
            answer
                .iter_mut()
                .for_each(|part| part.truncate(part.len().saturating_sub(bytes)));
        }
        lose(Request::Get, fault, answer)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let deleted = locations.then(move |location| {
            let store = store.clone();
            async move {
                let location = location?;
                let fault = store.enter(Request::Delete).await?;
                if fault == Some(Fault::Double) {
                    store.inner.delete(&location).await?;
                }
                store.inner.delete(&location).await?;
                lose(Request::Delete, fault, location)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = futures::stream::once(async move {
            match store.enter(Request::List).await {
                Ok(_) => store.inner.list(prefix.as_ref()),
                Err(error) => futures::stream::once(async move { Err(error) }).boxed(),
            }
        });
        listed.flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.enter(Request::List).await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fault = self.enter(Request::Copy).await?;
        if fault == Some(Fault::Double) {
            drop(self.inner.copy_opts(from, to, options.clone()).await);
        }
        self.inner.copy_opts(from, to, options).await?;
        lose(Request::Copy, fault, ())
    }
}

/// A file in parts.
#[derive(Debug)]
struct Parts {
    inner: Box<dyn MultipartUpload>,
    store: FaultyStore,
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let fault = self.store.count(Request::PutPart);
        let part = self.inner.put_part(shortened(data, fault));
        Box::pin(async move {
            happen(Request::PutPart, fault).await?;
            part.await?;
            lose(Request::PutPart, fault, ())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let fault = self.store.enter(Request::CompleteParts).await?;
        let answer = self.inner.complete().await?;
        lose(Request::CompleteParts, fault, answer)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
