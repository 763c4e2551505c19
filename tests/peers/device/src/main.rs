//! A device that is driven moment by moment: embedded-update's own updater on a board that is none.
//!
//!     peer-device board=BOARD word=4|8 mtu=N keys=packed|named address=HOST:PORT path=PATH \
//!         authorization=VALUE firmware=FILE
//!
//! It says each moment in a line on standard output, and waits for a line with what happens in it: `go`, `cut` (the
//! power goes), `lose` (what is on its way does not arrive); `fuse N` before one of these has the power go after N
//! operations of the flash. The moments:
//!
//!     boot VERSION SIZE SHA256    a firmware starts         boot nothing    there is none that could
//!     status …                    before it is sent         answer …        before it is looked at
//!     synced | updated | failed   the updater has ended
//!
//! `dark` is told besides, when the power has gone in the middle of something.

mod boards;
mod bootloader;
mod cloud;
mod console;
mod flash;
mod image;

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::cell::RefCell;
use std::collections::HashMap;
use std::thread::sleep;
use std::time::Duration;

use embedded_hal_async::delay::DelayUs;
use embedded_update::{DeviceStatus, FirmwareUpdater, UpdaterConfig};

use boards::{Board, Careful, Flashed, Manager, Plain};
use bootloader::{Boot01, Boot07};
use cloud::{Endpoint, Moment, Service};
use console::{ask, tell, Order};
use image::Image;

/// No pause that anything asks for: polls are whole seconds.
const TIMEOUT_MS: u32 = 40_001;
/// No device is back sooner: not when its wait ran out, nor when its power was gone.
const AWAY: Duration = Duration::from_millis(1100);

/// Time that passes as it does elsewhere, but that a wait runs out when it is told to.
struct Clock<'a>(&'a Moment);

impl DelayUs for Clock<'_> {
    async fn delay_us(&mut self, us: u32) {
        sleep(Duration::from_micros(us.into()));
    }

    async fn delay_ms(&mut self, ms: u32) {
        if ms != TIMEOUT_MS {
            return sleep(Duration::from_millis(ms.into()));
        }
        let waited = |_: &mut Context<'_>| {
            if self.0.waited.take() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        };
        core::future::poll_fn(waited).await;
        sleep(AWAY);
    }
}

/// What a future comes to; none if the power goes before.
fn run<F: Future>(future: F, moment: &Moment) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // Nothing here waits for anything outside, so whatever is pending has a reason to be polled again.
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if moment.cut.take() {
            return None;
        }
    }
}

/// Why a firmware runs no more.
#[derive(PartialEq)]
enum End {
    /// It has an update to start.
    Reset,
    /// It has lost its power, or crashed.
    Power,
}

/// Lives from one start to the next.
fn live<B: Board>(board: &RefCell<B>, endpoint: &Endpoint) -> End {
    let burn = |operations| board.borrow_mut().burn_after(operations);
    let firmware = board.borrow_mut().boot();
    let firmware = match firmware {
        Ok(bytes) => Image::start(&bytes),
        Err(_) if !board.borrow().has_power() => return End::Power,
        Err(refusal) => panic!("the bootloader gave up: {refusal}"),
    };
    let Some(firmware) = firmware else {
        ask("boot nothing", burn);
        return End::Power;
    };
    let version = String::from_utf8_lossy(&firmware.version).into_owned();
    let started = format!("boot {version} {} {}", firmware.size, firmware.sha256);
    if ask(&started, burn) == Order::Cut || firmware.crashes {
        return End::Power;
    }
    let moment = Moment::default();
    let service = Service {
        endpoint,
        moment: &moment,
        ask: |line: &str| ask(line, burn),
        answer: Vec::new(),
    };
    let config = UpdaterConfig {
        timeout_ms: TIMEOUT_MS,
        backoff_ms: 100,
    };
    let mut updater = FirmwareUpdater::new(service, config);
    let mut device = board.borrow_mut().device(&firmware.version);
    loop {
        let Some(ended) = run(updater.run(&mut device, &mut Clock(&moment)), &moment) else {
            return End::Power;
        };
        if !board.borrow().has_power() {
            return End::Power;
        }
        let line = match &ended {
            Ok(DeviceStatus::Synced(_)) => "synced".to_string(),
            Ok(DeviceStatus::Updated) => "updated".to_string(),
            Err(error) => format!("failed {error:?}"),
        };
        if ask(&line, burn) == Order::Cut {
            return End::Power;
        }
        match ended {
            Ok(DeviceStatus::Updated) => return End::Reset,
            Ok(DeviceStatus::Synced(poll)) => sleep(Duration::from_secs(poll.unwrap_or_default().into())),
            Err(_) => sleep(AWAY),
        }
    }
}

fn power_up<B: Board>(firmware: &[u8], endpoint: &Endpoint) {
    let board = RefCell::new(B::new(firmware));
    loop {
        if live(&board, endpoint) == End::Power {
            sleep(AWAY);
        }
        if !board.borrow().has_power() {
            tell("dark");
            board.borrow_mut().switch_on();
        }
    }
}

macro_rules! boards {
    ($options:expr, $($mtu:literal)*) => {
        match ($options.board.as_str(), $options.word, $options.mtu) {
            $(
                ("plain", _, $mtu) => power_up::<Plain<$mtu>>,
                ("careful-0.1", 4, $mtu) => power_up::<Flashed<Careful<Boot01, 4, $mtu>, Boot01, 4>>,
                ("careful-0.1", 8, $mtu) => power_up::<Flashed<Careful<Boot01, 8, $mtu>, Boot01, 8>>,
                ("careful-0.7", 4, $mtu) => power_up::<Flashed<Careful<Boot07, 4, $mtu>, Boot07, 4>>,
                ("careful-0.7", 8, $mtu) => power_up::<Flashed<Careful<Boot07, 8, $mtu>, Boot07, 8>>,
                ("manager-0.1", 4, $mtu) => power_up::<Flashed<Manager<Boot01, 4, $mtu>, Boot01, 4>>,
                ("manager-0.1", 8, $mtu) => power_up::<Flashed<Manager<Boot01, 8, $mtu>, Boot01, 8>>,
                ("manager-0.7", 4, $mtu) => power_up::<Flashed<Manager<Boot07, 4, $mtu>, Boot07, 4>>,
                ("manager-0.7", 8, $mtu) => power_up::<Flashed<Manager<Boot07, 8, $mtu>, Boot07, 8>>,
            )*
            (board, word, mtu) => panic!("no {board} with words of {word} bytes and blocks of {mtu}"),
        }
    };
}

struct Options {
    board: String,
    word: usize,
    mtu: usize,
}

fn main() {
    let given: HashMap<String, String> = std::env::args()
        .skip(1)
        .filter_map(|argument| {
            argument
                .split_once('=')
                .map(|(name, value)| (name.into(), value.into()))
        })
        .collect();
    let get = |name: &str| given.get(name).unwrap_or_else(|| panic!("{name}=… is missing")).clone();
    let number = |name: &str| get(name).parse().unwrap_or_else(|_| panic!("{name}=… wants a number"));
    let options = Options {
        board: get("board"),
        word: number("word"),
        mtu: number("mtu"),
    };
    let endpoint = Endpoint {
        address: get("address"),
        path: get("path"),
        authorization: get("authorization"),
        packed: get("keys") == "packed",
    };
    let firmware = std::fs::read(get("firmware")).expect("the first firmware");
    let start = boards!(options, 64 100 256 333 500 512 1024 2016);
    start(&firmware, &endpoint);
}
