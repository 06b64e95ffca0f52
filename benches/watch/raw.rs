//! Watchers that read what goes over the wire, look at each message's number, and decode nothing else: what is measured is what
//! watchers cost the service, and these are on its machine, where those of life are not. So a connection is a socket, a buffer and
//! the little of HTTP/2 that many streams of one method need, and nothing of it is copied or kept.

use std::io;

use prost::{Message as _, encoding::decode_varint};
use resource_allocator::proto::v1::WatchAllocationsRequest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PATH: &[u8] = b"/resourceallocator.v1.ResourceAllocator/WatchAllocations";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that is taken: all that comes at once, for fewer calls of the kernel than with the default of 16 kB.
const FRAME_BYTES: u32 = 1 << 20;
/// How much may be under way on a stream and on a connection: these read all that comes.
const WINDOW: u32 = (1 << 31) - 1;
const FIRST_WINDOW: u32 = (1 << 16) - 1;
/// After how much the connection's window is moved on.
const WINDOW_STEP: u32 = 1 << 26;
const BUFFER: usize = 1 << 16;

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Of DATA and HEADERS that it is the stream's last, of SETTINGS and PING that it is an answer.
const END_OR_ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What is before each message: whether it is compressed, and its length.
const MESSAGE_HEADER: usize = 5;
/// Enough of a message to have its number: the token is before it.
const HEAD: usize = 80;

/// What a watcher was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The event of this number.
    Event(u64),
    /// A bookmark.
    Bookmark,
}

/// A connection with watchers, which are numbered from 0.
pub struct Connection {
    socket: TcpStream,
    buffer: Box<[u8]>,
    watchers: Vec<Messages>,
    /// The frame that is being read: its header, as far as it is there, and what is left of it.
    header: Vec<u8>,
    rest: usize,
    /// Of a frame that is no message, all of it.
    control: Vec<u8>,
    consumed: u32,
}

fn broken(problem: &str) -> io::Error {
    io::Error::other(problem.to_owned())
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("a short text"));
    out.extend_from_slice(text);
}

/// The headers of a call, none of them kept by the compression.
fn headers() -> Vec<u8> {
    // By the static table: POST, http, and the names of the path, of the authority and of the content's type.
    let mut block = vec![0x83, 0x86, 0x04];
    put_text(&mut block, PATH);
    block.push(0x01);
    put_text(&mut block, b"localhost");
    block.extend_from_slice(&[0x0f, 31 - 15]);
    put_text(&mut block, b"application/grpc");
    block.push(0x00);
    put_text(&mut block, b"te");
    put_text(&mut block, b"trailers");
    block
}

impl Connection {
    /// Connects to `HOST:PORT`, and opens a stream for each request; each begins with a bookmark.
    ///
    /// # Errors
    /// The socket's.
    pub async fn open(address: &str, requests: &[WatchAllocationsRequest]) -> io::Result<Self> {
        let mut out = PREFACE.to_vec();
        let mut settings = Vec::new();
        for (name, value) in [(4_u16, WINDOW), (5, FRAME_BYTES)] {
            settings.extend_from_slice(&name.to_be_bytes());
            settings.extend_from_slice(&value.to_be_bytes());
        }
        put_frame(&mut out, SETTINGS, 0, 0, &settings);
        put_frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        for (number, request) in (0_u32..).zip(requests) {
            let message = request.encode_to_vec();
            let mut data = vec![0];
            data.extend_from_slice(&u32::try_from(message.len()).expect("it is short").to_be_bytes());
            data.extend_from_slice(&message);
            put_frame(&mut out, HEADERS, END_HEADERS, 2 * number + 1, &headers());
            put_frame(&mut out, DATA, END_OR_ACK, 2 * number + 1, &data);
        }
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        socket.write_all(&out).await?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            watchers: requests.iter().map(|_| Messages::default()).collect(),
            header: Vec::with_capacity(FRAME_HEADER),
            rest: 0,
            control: Vec::new(),
            consumed: 0,
        })
    }

    /// Reads what has come, or waits for it, and says what who was told.
    ///
    /// # Errors
    /// The socket's, or that a stream ended.
    pub async fn read(&mut self, mut told: impl FnMut(usize, Told)) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.socket.read(&mut buffer).await;
        let taken = match read {
            Ok(0) => Err(broken("the connection ended")),
            Ok(length) => self.take(&buffer[..length], &mut told),
            Err(error) => Err(error),
        };
        self.buffer = buffer;
        let mut out = taken?;
        if self.consumed >= WINDOW_STEP {
            put_frame(&mut out, WINDOW_UPDATE, 0, 0, &std::mem::take(&mut self.consumed).to_be_bytes());
        }
        if out.is_empty() { Ok(()) } else { self.socket.write_all(&out).await }
    }

    /// Takes bytes that follow those before, and returns what is to be answered.
    fn take(&mut self, mut data: &[u8], told: &mut impl FnMut(usize, Told)) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while !data.is_empty() {
            if self.header.len() < FRAME_HEADER {
                let taken = (FRAME_HEADER - self.header.len()).min(data.len());
                self.header.extend_from_slice(&data[..taken]);
                data = &data[taken..];
                if self.header.len() < FRAME_HEADER {
                    break;
                }
                let [a, b, c, ..] = self.header[..] else { break };
                self.rest = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            let taken = self.rest.min(data.len());
            let (now, later) = data.split_at(taken);
            (self.rest, data) = (self.rest - taken, later);
            let [.., kind, flags, a, b, c, d] = self.header[..] else { break };
            if kind == DATA {
                let watcher = (u32::from_be_bytes([a, b, c, d]) / 2) as usize;
                self.consumed += u32::try_from(taken).expect("part of a frame");
                self.watchers[watcher].take(now, |message| told(watcher, message));
            } else {
                self.control.extend_from_slice(now);
            }
            if self.rest == 0 {
                match kind {
                    SETTINGS if flags & END_OR_ACK == 0 => put_frame(&mut out, SETTINGS, END_OR_ACK, 0, &[]),
                    PING if flags & END_OR_ACK == 0 => {
                        put_frame(&mut out, PING, END_OR_ACK, 0, &self.control);
                    }
                    DATA | HEADERS if flags & END_OR_ACK != 0 => return Err(broken("a stream ended")),
                    RST_STREAM | GOAWAY => return Err(broken("the service ended a stream")),
                    _ => {}
                }
                self.control.clear();
                self.header.clear();
            }
        }
        Ok(out)
    }
}

/// The messages of one stream, as they come in.
#[derive(Default)]
struct Messages {
    /// The beginning of the message that is being read.
    head: Vec<u8>,
    /// What is left of one whose beginning was read.
    rest: usize,
}

impl Messages {
    fn take(&mut self, mut data: &[u8], mut told: impl FnMut(Told)) {
        let mut tell = |head: &[u8]| told(read(head).expect("a message of this method"));
        loop {
            let passed = self.rest.min(data.len());
            (self.rest, data) = (self.rest - passed, &data[passed..]);
            if data.is_empty() {
                return;
            }
            // Mostly the beginning is there as a whole, and need not be put together.
            if self.head.is_empty()
                && let Some((length, head)) = beginning(data)
            {
                tell(head);
                self.rest = MESSAGE_HEADER + length;
                continue;
            }
            let wanted = MESSAGE_HEADER + length(&self.head).unwrap_or(0).min(HEAD);
            let taken = (wanted - self.head.len()).min(data.len());
            self.head.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if let Some((length, head)) = beginning(&self.head) {
                tell(head);
                self.rest = MESSAGE_HEADER + length - self.head.len();
                self.head.clear();
            }
        }
    }
}

fn length(message: &[u8]) -> Option<usize> {
    let length = message.get(1..MESSAGE_HEADER)?.try_into().ok()?;
    Some(u32::from_be_bytes(length) as usize)
}

/// A message's length, and enough of it to have its number; none where that is not there yet.
fn beginning(message: &[u8]) -> Option<(usize, &[u8])> {
    let length = length(message)?;
    Some((length, message.get(MESSAGE_HEADER..MESSAGE_HEADER + length.min(HEAD))?))
}

/// Reads from a message's beginning what it is: `resume_token = 1`, then `event = 2` with its `sequence = 1`, or `bookmark = 3`.
fn read(head: &[u8]) -> Option<Told> {
    let [0x0a, length, rest @ ..] = head else { return None };
    let payload = rest.get(usize::from(*length)..)?;
    match payload {
        [0x1a, ..] => Some(Told::Bookmark),
        [0x12, event @ ..] => {
            let mut event = event;
            decode_varint(&mut event).ok()?;
            let [0x08, number @ ..] = event else { return None };
            let mut number = number;
            decode_varint(&mut number).ok().map(Told::Event)
        }
        _ => None,
    }
}
