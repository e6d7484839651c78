//! Reads a socket on a thread of its own and hands on whole records.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::DataFusionError;
use datafusion::error::Result;
use memchr::{memchr_iter, memrchr};
use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The most that is read at once.
const READ_BYTES: usize = 64 << 10;
/// Reads that may wait to be decoded; more wait in the sender's and the system's buffers.
const READS_WAITING: usize = 4;
/// A record without end would take all memory.
const RECORD_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What the thread says: whole records, each with its delimiter.
type Said = Result<Vec<u8>>;

/// An open connection. When it is dropped, the thread ends.
pub(super) struct Connection {
    said: Receiver<Said>,
    /// The thread's socket, once there is one: closing it wakes a thread that waits for bytes.
    socket: Arc<Mutex<Option<TcpStream>>>,
}

impl Connection {
    /// Connects, on the new thread; a failure to is what [`Self::next`] returns.
    pub(super) fn open(address: String, delimiter: u8) -> Self {
        let (sender, said) = channel(READS_WAITING);
        let socket = Arc::new(Mutex::new(None));
        let reader = Reader {
            address,
            delimiter,
            sender,
            socket: Arc::clone(&socket),
        };
        let failed = reader.sender.clone();
        let spawned = std::thread::Builder::new()
            .name("socket".into())
            .spawn(move || reader.run());
        if let Err(e) = spawned {
            // The channel is empty: there is room.
            let _ = failed.try_send(Err(DataFusionError::IoError(e)));
        }
        Self { said, socket }
    }

    /// All whole records that have come since; waits when there are none. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        self.said.recv().await.transpose()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.said.close();
        if let Some(socket) = self.socket.lock().take() {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

struct Reader {
    address: String,
    delimiter: u8,
    sender: Sender<Said>,
    socket: Arc<Mutex<Option<TcpStream>>>,
}

impl Reader {
    fn run(self) {
        if let Err(e) = self.read() {
            // Nobody listens when the query is over.
            let _ = self.sender.blocking_send(Err(e));
        }
    }

    fn failed(&self, what: &str, e: &std::io::Error) -> DataFusionError {
        DataFusionError::Execution(format!("socket {}: {what}: {e}", self.address))
    }

    fn connect(&self) -> Result<TcpStream> {
        let addresses = self
            .address
            .to_socket_addrs()
            .map_err(|e| self.failed("cannot find the host", &e))?;
        let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(self.failed("cannot connect", &last))
    }

    fn read(&self) -> Result<()> {
        let mut stream = self.connect()?;
        let other = stream.try_clone().map_err(|e| self.failed("cannot read", &e))?;
        *self.socket.lock() = Some(other);
        let mut buffer = vec![0; READ_BYTES];
        // The beginning of a record of which the end has not come.
        let mut begun: Vec<u8> = Vec::new();
        // Dropped before the socket was there to be closed, or after.
        while !self.sender.is_closed() {
            let read = match stream.read(&mut buffer) {
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) if self.sender.is_closed() => return Ok(()),
                Err(e) => return Err(self.failed("cannot read", &e)),
            };
            if read == 0 {
                if !begun.is_empty() {
                    // The last record may do without.
                    begun.push(self.delimiter);
                    let _ = self.sender.blocking_send(Ok(begun));
                }
                return Ok(());
            }
            let came = &buffer[..read];
            match memrchr(self.delimiter, came) {
                Some(last) => {
                    begun.extend_from_slice(&came[..=last]);
                    let whole = std::mem::replace(&mut begun, came[last + 1..].to_vec());
                    if self.sender.blocking_send(Ok(whole)).is_err() {
                        return Ok(());
                    }
                }
                None => begun.extend_from_slice(came),
            }
            if begun.len() > RECORD_BYTES_MAX {
                return Err(DataFusionError::Execution(format!(
                    "socket {}: a record is longer than {RECORD_BYTES_MAX} bytes; is 'byte-delimiter' right?",
                    self.address
                )));
            }
        }
        Ok(())
    }
}

/// The records of whole ones, without their delimiters. A `\r` before a `\n` belongs to the line's end.
pub(super) fn records(bytes: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(delimiter, bytes).map(move |end| {
        let record = &bytes[start..end];
        start = end + 1;
        match delimiter {
            b'\n' => record.strip_suffix(b"\r").unwrap_or(record),
            _ => record,
        }
    })
}
