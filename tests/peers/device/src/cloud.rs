//! Drogue Cloud's HTTP endpoint, as embedded-update's service.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use embedded_update::{Command, Status, UpdateService};

use crate::console::Order;
use crate::image::hex;

/// Longer than the endpoint holds an answer back.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the device does besides, seen from inside an exchange.
#[derive(Default)]
pub struct Moment {
    /// The power has gone.
    pub cut: Cell<bool>,
    /// The device has waited for long enough.
    pub waited: Cell<bool>,
}

pub struct Endpoint {
    /// `HOST:PORT`.
    pub address: String,
    pub path: String,
    /// The header's value.
    pub authorization: String,
    /// Integer keys, as Drogue Device sends them; else text, as its gateway tool does, which names no content type.
    pub packed: bool,
}

pub struct Service<'a, A> {
    pub endpoint: &'a Endpoint,
    pub moment: &'a Moment,
    /// What happens at a moment.
    pub ask: A,
    pub answer: Vec<u8>,
}

impl<A: FnMut(&str) -> Order> Service<'_, A> {
    /// Goes on unless the moment says otherwise; then it never does.
    async fn pass(&mut self, moment: &str) {
        match (self.ask)(moment) {
            Order::Go => return,
            Order::Cut => self.moment.cut.set(true),
            Order::Lose => self.moment.waited.set(true),
        }
        core::future::pending().await
    }
}

impl<A: FnMut(&str) -> Order> UpdateService for Service<'_, A> {
    type Error = String;

    async fn request<'m>(&'m mut self, status: &'m Status<'m>) -> Result<Command<'m>, String> {
        let encode = if self.endpoint.packed {
            serde_cbor::ser::to_vec_packed
        } else {
            serde_cbor::to_vec
        };
        let payload = encode(status).map_err(|error| error.to_string())?;
        self.pass(&format!("status {}", told(status))).await;
        let (code, body) = self.endpoint.post(&payload)?;
        let shown = serde_cbor::from_slice::<Command>(&body).map_or_else(|_| hex(&body), |command| named(&command));
        self.answer = body;
        self.pass(&format!("answer {code} {shown}")).await;
        serde_cbor::from_slice(&self.answer).map_err(|error| error.to_string())
    }
}

impl Endpoint {
    /// The status code and the body of the answer to a payload.
    fn post(&self, payload: &[u8]) -> Result<(u16, Vec<u8>), String> {
        let content_type = if self.packed {
            "Content-Type: application/cbor\r\n"
        } else {
            ""
        };
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n{}Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.path,
            self.address,
            self.authorization,
            content_type,
            payload.len()
        );
        let exchange = || -> std::io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect(&self.address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&[head.as_bytes(), payload].concat())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| error.to_string())?;
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or("an answer without an end of head")?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let code = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or("an answer without a status")?;
        let body = answer[end + 4..].to_vec();
        match length(&head) {
            Some(length) if length == body.len() => Ok((code, body)),
            _ => Err(format!("an answer of {} bytes, not as many as it says", body.len())),
        }
    }
}

fn length(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn told(status: &Status) -> String {
    let runs = text(status.version.as_ref());
    match &status.update {
        Some(update) => format!("{runs} {}@{}", text(update.version.as_ref()), update.offset),
        None => runs,
    }
}

fn named(command: &Command) -> String {
    match command {
        Command::Wait { poll, .. } => format!("WAIT {}", poll.unwrap_or(0)),
        Command::Sync { version, .. } => format!("SYNC {}", text(version.as_ref())),
        Command::Write {
            version, offset, data, ..
        } => {
            format!("WRITE {}@{}+{}", text(version.as_ref()), offset, data.len())
        }
        Command::Swap { version, .. } => format!("SWAP {}", text(version.as_ref())),
    }
}
