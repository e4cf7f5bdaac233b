//! The guest's end of the bench's traffic. The first byte of a connection says what it is for: `<` swallows what comes
//! until its end, and then says how many bytes that were (u64, little-endian); `>` sends for as long as anybody reads;
//! `=` gives each byte back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

pub const PORT: u16 = 7780;
const PIECE_BYTES: usize = 256 << 10;

/// Serves everybody who connects, for good.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // An error is the end of one connection; its peer notices.
        std::thread::spawn(move || serve_connection(stream));
    }
}

fn serve_connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    match &what {
        b"<" => {
            let mut piece = vec![0; PIECE_BYTES];
            let mut swallowed = 0_u64;
            loop {
                match stream.read(&mut piece)? {
                    0 => return stream.write_all(&swallowed.to_le_bytes()),
                    bytes => swallowed += bytes as u64,
                }
            }
        }
        b">" => {
            let piece: Vec<u8> = (0..PIECE_BYTES).map(|i| i as u8).collect();
            loop {
                stream.write_all(&piece)?;
            }
        }
        b"=" => loop {
            stream.read_exact(&mut what)?;
            stream.write_all(&what)?;
        },
        _ => Ok(()),
    }
}
