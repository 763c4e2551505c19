//! Where whoever drives the device says at each moment what happens next.

use std::io::{BufRead, Write};

#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing special happens.
    Go,
    /// The power goes now.
    Cut,
    /// What is on its way gets lost: the device waits for it in vain.
    Lose,
}

/// Tells the moment, and waits for what happens in it. `burn` gets what an order to break the flash says.
pub fn ask(moment: &str, mut burn: impl FnMut(u32)) -> Order {
    tell(moment);
    loop {
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            std::process::exit(0); // nobody drives any more
        }
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["go"] => return Order::Go,
            ["cut"] => return Order::Cut,
            ["lose"] => return Order::Lose,
            ["fuse", operations] => burn(operations.parse().expect("a number of operations")),
            _ => panic!("{line:?} is no order"),
        }
    }
}

pub fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
