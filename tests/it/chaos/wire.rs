//! As much of Postgres' protocol as it takes to know what a client is about to send: its messages, and what kind each is.

/// What a client sends, cut into messages.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// The first message of a connection has no type.
    is_started: bool,
}

/// A message of a client.
pub struct Message {
    /// All of it, as it goes over the wire.
    pub bytes: Vec<u8>,
    /// Its type; none for the first of a connection.
    kind: Option<u8>,
}

impl Messages {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next message, once it is whole.
    pub fn next(&mut self) -> Option<Message> {
        let head = usize::from(self.is_started);
        let length = self.bytes.get(head..head + 4)?;
        let length = head + usize::try_from(u32::from_be_bytes(length.try_into().unwrap())).unwrap();
        if self.bytes.len() < length {
            return None;
        }
        let kind = self.is_started.then(|| self.bytes[0]);
        self.is_started = true;
        let rest = self.bytes.split_off(length);
        Some(Message { bytes: std::mem::replace(&mut self.bytes, rest), kind })
    }
}

impl Message {
    /// Whether the server answers now: a statement by itself, or the end of a series.
    pub fn ends_round(&self) -> bool {
        matches!(self.kind, Some(b'Q' | b'S'))
    }

    /// Whether it commits.
    pub fn is_commit(&self) -> bool {
        self.kind == Some(b'Q') && self.bytes[5..].starts_with(b"COMMIT")
    }

    /// Whether only a connection that writes sends it.
    pub fn writes(&self) -> bool {
        let has = |words: &[u8]| self.bytes.windows(words.len()).any(|window| window == words);
        matches!(self.kind, Some(b'Q' | b'P')) && (has(b"INSERT INTO") || has(b"FOR UPDATE"))
    }
}

#[test]
fn messages_are_cut_where_they_end_however_they_come_in() {
    let startup = [&8_u32.to_be_bytes()[..], b"abcd"].concat();
    let query = [&b"Q"[..], &11_u32.to_be_bytes(), b"COMMIT\0"].concat();
    let sync = [&b"S"[..], &4_u32.to_be_bytes()].concat();
    let mut messages = Messages::default();
    let mut cut = Vec::new();
    for byte in [startup.clone(), query.clone(), sync.clone()].concat() {
        messages.push(&[byte]);
        cut.extend(messages.next());
    }
    let lengths: Vec<_> = cut.iter().map(|message| message.bytes.len()).collect();
    assert_eq!(lengths, [startup.len(), query.len(), sync.len()]);
    assert_eq!(cut.iter().map(Message::is_commit).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(cut.iter().map(Message::ends_round).collect::<Vec<_>>(), [false, true, true]);
}
