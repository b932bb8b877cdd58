//! The way of a result from the query runtime to whoever asked: a bounded channel that can be awaited on any executor.
//!
//! The end is a message of its own, so that a query that vanished (a panic, a runtime that was shut down) is an error and
//! not a short result. Dropping the stream cancels the query: it ends at its next look at its guard.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures_channel::mpsc;
use futures_util::Stream;

use super::QueryError;
use super::format::Encoder;
use super::guard::Guard;

/// How many items wait in a channel: the query works on the next while the caller takes one.
const CHANNEL_ITEMS_MAX: usize = 2;

/// A result as record batches.
pub type QueryStream = ResultStream<RecordBatch>;

/// A result as the bytes of a [`Format`](super::Format).
pub type QueryBytes = ResultStream<Bytes>;

/// A running query's result. Ends after the first error.
pub struct ResultStream<T> {
    schema: SchemaRef,
    receiver: mpsc::Receiver<Message<T>>,
    over: bool,
    _query: CancelOnDrop,
}

impl<T> ResultStream<T> {
    pub(super) fn new(started: Started<T>, query: CancelOnDrop) -> Self {
        ResultStream { schema: started.schema, receiver: started.receiver, over: false, _query: query }
    }

    /// The columns of the result.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl<T> Stream for ResultStream<T> {
    type Item = Result<T, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let message = ready!(Pin::new(&mut self.receiver).poll_next(cx));
        Poll::Ready(match message {
            Some(Message::Item(item)) => Some(Ok(item)),
            other => {
                self.over = true;
                other.map_or_else(|| Some(Err(super::error::aborted())), Message::last)
            }
        })
    }
}

impl<T> std::fmt::Debug for ResultStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResultStream").field("schema", &self.schema).field("over", &self.over).finish_non_exhaustive()
    }
}

/// What travels.
pub(super) enum Message<T> {
    Item(T),
    Failed(QueryError),
    End,
}

impl<T> Message<T> {
    fn last(self) -> Option<Result<T, QueryError>> {
        match self {
            Message::Item(item) => Some(Ok(item)),
            Message::Failed(error) => Some(Err(error)),
            Message::End => None,
        }
    }
}

/// What the task answers when the first rows are there.
pub(super) struct Started<T> {
    schema: SchemaRef,
    receiver: mpsc::Receiver<Message<T>>,
}

/// The task's end of the channel.
pub(super) struct ResultSender<T>(mpsc::Sender<Message<T>>);

/// The caller has dropped its stream.
pub(super) struct Gone;

impl<T> ResultSender<T> {
    pub(super) fn open(schema: SchemaRef) -> (Self, Started<T>) {
        let (sender, receiver) = mpsc::channel(CHANNEL_ITEMS_MAX);
        (ResultSender(sender), Started { schema, receiver })
    }

    /// Waits for room.
    pub(super) async fn send(&mut self, message: Message<T>) -> Result<(), Gone> {
        poll_fn(|cx| self.0.poll_ready(cx)).await.map_err(|_| Gone)?;
        self.0.start_send(message).map_err(|_| Gone)
    }
}

/// What batches become before they travel.
pub(super) trait Output: Send + 'static {
    type Item: Send + 'static;

    /// Takes a batch, once all items of those before are taken.
    fn push(&mut self, batch: RecordBatch) -> Result<(), QueryError>;

    /// There are no more batches.
    fn finish(&mut self) -> Result<(), QueryError>;

    /// The next item, if there is one now.
    fn item(&mut self) -> Result<Option<Self::Item>, QueryError>;
}

/// Batches as they are.
#[derive(Default)]
pub(super) struct Batches(Option<RecordBatch>);

impl Output for Batches {
    type Item = RecordBatch;

    fn push(&mut self, batch: RecordBatch) -> Result<(), QueryError> {
        self.0 = (batch.num_rows() > 0).then_some(batch);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), QueryError> {
        Ok(())
    }

    fn item(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        Ok(self.0.take())
    }
}

/// Batches as the bytes of a format.
impl Output for Encoder {
    type Item = Bytes;

    fn push(&mut self, batch: RecordBatch) -> Result<(), QueryError> {
        Encoder::push(self, batch)
    }

    fn finish(&mut self) -> Result<(), QueryError> {
        Encoder::finish(self)
    }

    fn item(&mut self) -> Result<Option<Bytes>, QueryError> {
        self.piece().map(|piece| (!piece.is_empty()).then_some(piece))
    }
}

/// Ends a query when it is dropped.
pub(super) struct CancelOnDrop(pub(super) Arc<Guard>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
