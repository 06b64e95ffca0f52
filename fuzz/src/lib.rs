//! What is fuzzed: bytes that strangers send, up to where they are the domain's. Each entry takes any bytes, and panics where the
//! code is wrong. The tests of the service run the seeds of each through the same entries (`tests/it/inputs.rs`).

use prost::Message;
use resource_allocator::{
    api::{
        decode,
        token::{PageToken, Purpose, ResumeToken, Tokens},
    },
    auth::Credentials,
    domain::request::Strategy,
    http,
    inventory_file::{self, Format},
    proto::v1,
};

/// A request: the first byte says of which RPC, the rest is the message.
pub fn request(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else { return };
    match kind % 10 {
        0 => read(message, |message: v1::EnsureAllocationRequest| {
            if let Ok((request, _)) = decode::ensure(message.clone(), Strategy::Spread) {
                assert_eq!(request.project_id.to_string(), message.project_id);
                assert!(request.modules.len() <= message.modules.len().max(1));
                // What was taken once is taken again, and the same.
                let again = decode::ensure(message, Strategy::Spread).map(|(request, _)| request);
                assert_eq!(format!("{again:?}"), format!("{:?}", Ok::<_, ()>(request)));
            }
        }),
        1 => read(message, |message| drop(decode::release(&message))),
        2 => read(message, |message| drop(decode::find(message, Strategy::Binpack))),
        3 => read(message, |message| drop(decode::relocate(&message, Strategy::Spread))),
        4 => read(message, |message| drop(decode::port_in_use(message))),
        5 => read(message, register),
        6 => read(message, |message| drop(decode::update(message))),
        7 => read(message, |message| drop(decode::sync(message))),
        8 => read(message, |message| drop(decode::usage(message))),
        _ => read(message, |message| drop(decode::policy(message))),
    }
}

fn read<M: Message + Default>(bytes: &[u8], decode: impl FnOnce(M)) {
    if let Ok(message) = M::decode(bytes) {
        decode(message);
    }
}

fn register(request: v1::RegisterServerRequest) {
    let given = request.server.clone();
    if let Ok((spec, _)) = decode::register(request) {
        assert_eq!(Some(spec.handle.to_string()), given.map(|server| server.handle));
    }
}

/// Tokens of pages and resume points, as they are sent and as what is in them; and the file of tokens that let callers in.
pub fn token(data: &[u8]) {
    let tokens = Tokens::new(b"a key that no input has");
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(tokens.open::<ResumeToken>(text).is_err(), "a resume token was forged");
        assert!(tokens.open::<PageToken>(text).is_err(), "a page token was forged");
    }
    comes_back::<ResumeToken>(&tokens, data);
    comes_back::<PageToken>(&tokens, data);
    let _ = Credentials::parse(data);
}

fn comes_back<P: Purpose + PartialEq + std::fmt::Debug>(tokens: &Tokens, data: &[u8]) {
    let Some(content) = P::from_bytes(data) else { return };
    let sealed = tokens.seal(&content);
    match tokens.open::<P>(&sealed) {
        Ok(opened) => assert_eq!(opened, content),
        // The service gives none that is so long.
        Err(_) => assert!(sealed.len() > 2048, "{sealed}"),
    }
}

/// An inventory file: its servers are registered like any others.
pub fn inventory(data: &[u8]) {
    for format in [Format::Toml, Format::Json] {
        for server in inventory_file::parse(data, format).unwrap_or_default() {
            register(v1::RegisterServerRequest { server: Some(server) });
        }
    }
}

/// The query of the JSON list.
pub fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(request) = http::filters(text) {
        assert!(request.project_id.is_some() || request.server_handle.is_some());
    }
}
