//! A stream that sends together what is ready at the same time.
//!
//! Each answer wakes the task of its connection, and tokio runs a task that was just woken before those that wait for their turn. So
//! each answer would be sent, by a call of the kernel and in a packet of its own, before the next one is looked at, which may be
//! ready as well. Here what is flushed is only owed: the task is woken once more, goes to the end of the line, and sends what has
//! gathered when it comes round again. HTTP/2 reads in every round, so that is where it is sent.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// How much gathers at the most.
const CAPACITY: usize = 16 << 10;

/// What a connection of HTTP/2 begins with, as far as no other does.
const PREFACE: &[u8] = b"PRI ";

/// What is known of a stream's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// Nothing was read yet.
    Unknown,
    /// One that reads in every round.
    Http2,
    /// One that may write without looking for what comes: what is flushed is sent at once.
    Other,
}

/// A stream whose writes are gathered.
#[derive(Debug)]
pub struct Gathered<T> {
    stream: BufWriter<T>,
    protocol: Protocol,
    /// Whether what was written is to be sent.
    owed: bool,
}

impl<T: AsyncWrite> Gathered<T> {
    /// A server's end, which takes from what is read first whether it is HTTP/2.
    pub fn server(stream: T) -> Self {
        Self::new(stream, Protocol::Unknown)
    }

    /// A client's end, which speaks HTTP/2.
    pub fn http2_client(stream: T) -> Self {
        Self::new(stream, Protocol::Http2)
    }

    fn new(stream: T, protocol: Protocol) -> Self {
        Self { stream: BufWriter::with_capacity(CAPACITY, stream), protocol, owed: false }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Where the other end takes nothing now, this goes on once it does.
        if this.owed && Pin::new(&mut this.stream).poll_flush(cx)?.is_ready() {
            this.owed = false;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if this.protocol == Protocol::Unknown {
            let is_http2 = buffer.filled()[before..].starts_with(PREFACE);
            this.protocol = if is_http2 { Protocol::Http2 } else { Protocol::Other };
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.protocol != Protocol::Http2 || this.stream.buffer().is_empty() {
            return Pin::new(&mut this.stream).poll_flush(cx);
        }
        if !std::mem::replace(&mut this.owed, true) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Counts how often a task was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn has_come(other: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = [0; 64];
        let mut buffer = ReadBuf::new(&mut bytes);
        let _ = Pin::new(other).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        buffer.filled().to_vec()
    }

    /// What a connection's task does in a round: it reads all that is there, and then sends an answer.
    fn round(stream: &mut Gathered<DuplexStream>, cx: &mut Context<'_>, answer: &[u8]) {
        let mut bytes = [0; 64];
        while Pin::new(&mut *stream).poll_read(cx, &mut ReadBuf::new(&mut bytes)).is_ready() {}
        assert!(Pin::new(&mut *stream).poll_write(cx, answer).is_ready());
        assert!(Pin::new(&mut *stream).poll_flush(cx).is_ready());
    }

    #[tokio::test]
    async fn answers_of_one_round_are_sent_together_in_the_next() {
        let (ours, mut theirs) = duplex(1024);
        let mut stream = Gathered::server(ours);
        theirs.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        round(&mut stream, &mut cx, b"one ");
        assert!(stream.write(b"two ").await.is_ok());
        assert!(stream.flush().await.is_ok());
        assert_eq!(has_come(&mut theirs), b"");
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "so that there is a next round");
        round(&mut stream, &mut cx, b"three");
        assert_eq!(has_come(&mut theirs), b"one two ");
        // The end of the stream is after all that was written.
        stream.shutdown().await.unwrap();
        assert_eq!(has_come(&mut theirs), b"three");
    }

    #[tokio::test]
    async fn other_protocols_send_at_once() {
        let (ours, mut theirs) = duplex(1024);
        let mut stream = Gathered::server(ours);
        theirs.write_all(b"GET / HTTP/1.1").await.unwrap();
        round(&mut stream, &mut Context::from_waker(Waker::noop()), b"answer");
        assert_eq!(has_come(&mut theirs), b"answer");
    }

    #[tokio::test]
    async fn what_the_other_end_has_no_room_for_is_sent_when_it_has() {
        let (ours, mut theirs) = duplex(8);
        let mut stream = Gathered::http2_client(ours);
        let sent: Vec<u8> = (0..100).collect();
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        let reading = tokio::spawn(async move {
            let mut bytes = vec![0; 100];
            // Its end stays open, for to read on is not to have come to an end.
            theirs.read_exact(&mut bytes).await.map(|_| (bytes, theirs))
        });
        let mut byte = [0];
        let read = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        tokio::select! {
            _ = read => panic!("nothing was sent to this end"),
            received = reading => assert_eq!(received.unwrap().unwrap().0, sent),
        }
    }
}
