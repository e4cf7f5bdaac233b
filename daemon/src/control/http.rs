//! Metrics over HTTP for Prometheus: answers every GET of /metrics, one request per connection. It reads only the first
//! line of a request, so it needs no HTTP library.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

const CLIENTS_MAX: usize = 16;
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_HEAD_BYTES_MAX: u64 = 16 << 10;

/// Binds the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// What there is to be read, as it is now.
pub type TellMetrics = dyn Fn() -> String + Send + Sync;

/// Serves until the process ends, on a thread of its own.
pub fn serve_apart(address: SocketAddr, metrics: Arc<TellMetrics>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(bind(address))?;
    let thread = std::thread::Builder::new().name("ftd-metrics".into());
    thread.spawn(move || runtime.block_on(async { serve(listener, metrics, Handle::current()).await }))?;
    Ok(())
}

/// Takes clients until the future is dropped, and has them served by another runtime.
pub async fn serve(listener: TcpListener, metrics: Arc<TellMetrics>, clients: Handle) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = metrics.clone();
                clients.spawn(async move {
                    let _place = place;
                    // How a client ends is its own business.
                    let _ = timeout(CLIENT_TIMEOUT, answer(stream.into_std(), &*metrics)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: cannot accept a client; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: io::Result<std::net::TcpStream>, metrics: &TellMetrics) -> io::Result<()> {
    let mut stream = TcpStream::from_std(stream?)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader).take(REQUEST_HEAD_BYTES_MAX);
    let mut first = String::new();
    reader.read_line(&mut first).await?;
    let mut header = String::new();
    // To the end of the head, or the close would take the answer back.
    while reader.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let mut words = first.split_ascii_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", metrics()),
        (Some("GET"), Some(_)) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    writer.write_all(head.as_bytes()).await?;
    writer.write_all(body.as_bytes()).await?;
    writer.shutdown().await
}
