//! Local files, read into buffers that are used again: a row group of Parquet is tens of megabytes, and fresh memory for
//! each would cost more than reading it from the page cache.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use thalweg_memory::SegmentPool;

/// Smaller reads are served from the allocator, which has such buffers at hand.
const POOLED_BYTES_MIN: u64 = 256 << 10;

/// [`LocalFileSystem`] with pooled buffers for large reads.
#[derive(Debug)]
pub(crate) struct PooledLocalFileSystem {
    files: LocalFileSystem,
    pool: SegmentPool,
}

impl PooledLocalFileSystem {
    /// The file system from its root, reading into buffers of `pool`.
    pub(crate) fn new(pool: SegmentPool) -> Self {
        Self {
            files: LocalFileSystem::new(),
            pool,
        }
    }
}

impl fmt::Display for PooledLocalFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

fn read(file: &mut File, range: &Range<u64>, pool: &SegmentPool) -> std::io::Result<Bytes> {
    let length = range.end - range.start;
    file.seek(SeekFrom::Start(range.start))?;
    let mut part = file.take(length);
    let bytes = if length < POOLED_BYTES_MIN {
        let mut buffer = Vec::with_capacity(length as usize);
        part.read_to_end(&mut buffer)?;
        Bytes::from(buffer)
    } else {
        let mut segment = pool.segment(length as usize);
        part.read_to_end(segment.buffer())?;
        Bytes::from_owner(segment)
    };
    if bytes.len() as u64 != length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

#[async_trait]
impl ObjectStore for PooledLocalFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.files.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let path = self.files.path_to_filesystem(location)?;
        let (wanted, pool) = (ranges.to_vec(), self.pool.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let mut file = File::open(path)?;
            wanted.iter().map(|range| read(&mut file, range, &pool)).collect()
        });
        match reading.await {
            Ok(std::io::Result::Ok(parts)) => Ok(parts),
            // The store that this stands for knows best how to put it.
            _ => self.files.get_ranges(location, ranges).await,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ranges_are_read_large_and_small_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(folder.path().join("file"), &content).unwrap();
        let location = Path::from_absolute_path(folder.path().join("file")).unwrap();
        let pool = SegmentPool::new(64 << 20);
        let store = PooledLocalFileSystem::new(pool.clone());
        for _ in 0..2 {
            let ranges = [5..10, 100..2_500_000, 0..3_000_000, 7..7];
            let parts = store.get_ranges(&location, &ranges).await.unwrap();
            for (range, part) in ranges.iter().zip(&parts) {
                assert_eq!(part, &content[range.start as usize..range.end as usize]);
            }
            drop(parts);
            assert!(pool.idle_bytes() > 5_000_000, "the buffers came back");
        }
        let error = store
            .get_ranges(&location, std::slice::from_ref(&(2_999_999..3_000_001)))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
        let error = store
            .get_ranges(&Path::from("no/such/file"), std::slice::from_ref(&(0..1)))
            .await
            .unwrap_err();
        assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
    }
}
