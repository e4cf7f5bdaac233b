//! The load generator: a program of the Linux guest that loads its raw disk as it is told over TCP, and answers with
//! what it measured. One static program without dependencies, started by the guest's /init.
//!
//!     ft-load DEVICE

mod disk;
mod request;
mod work;

use disk::Disk;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

/// The port that it listens on.
const PORT: u16 = 7779;
const LINE_MAX: u64 = 128;

fn main() {
    let words: Vec<_> = std::env::args().collect();
    let [_, device] = &words[..] else { fail("wants a block device") };
    let disk = Disk::open(Path::new(device)).unwrap_or_else(|why| fail(&format!("{device}: {why}")));
    let listener = TcpListener::bind(("0.0.0.0", PORT))
        .unwrap_or_else(|why| fail(&format!("cannot listen on port {PORT}: {why}")));
    println!("ft-load: {device}, {} bytes, port {PORT}", disk.bytes());
    // One client after the other: two loads at a time would measure each other.
    for stream in listener.incoming().flatten() {
        // An error is the end of one connection; its peer notices.
        let _ = serve(&stream, &disk);
    }
}

fn serve(mut stream: &TcpStream, disk: &Disk) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if input.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = request::answer(disk, &line).unwrap_or_else(|why| format!("ERR {why}"));
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn fail(why: &str) -> ! {
    eprintln!("ft-load: {why}");
    std::process::exit(1)
}
