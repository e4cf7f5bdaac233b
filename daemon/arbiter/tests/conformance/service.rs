//! The back end "service": a real server on loopback, over a store of its own.

use crate::suite::Site;
use ft_arbiter::Arbiter;
use ft_arbiter::service::{CellServer, CellStore, ServerLimits, ServiceArbiter, ServicePace};
use ft_tls::Protection;
use redb::{Database, ReadableTable, TableDefinition};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;

/// A service that all nodes reach.
pub struct Served {
    directory: tempfile::TempDir,
    address: SocketAddr,
    server: Mutex<Option<CellServer>>,
}

impl Served {
    pub fn new(_claim: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("cells");
        CellStore::create(&store).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = CellServer::start(
            listener,
            CellStore::open(&store).unwrap(),
            ServerLimits::default(),
            Protection::None,
        )
        .unwrap();
        Some(Self { address: server.address(), directory, server: Mutex::new(Some(server)) })
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("cells")
    }
}

impl Site for Served {
    fn connect(&self) -> Box<dyn Arbiter> {
        Box::new(ServiceArbiter::new(self.address, "web", ServicePace::default()))
    }

    fn damage(&self) {
        let mut server = self.server.lock().unwrap();
        *server = None;
        let database = Database::open(self.store()).unwrap();
        let txn = database.begin_write().unwrap();
        {
            let mut cells = txn.open_table(TableDefinition::<&str, &[u8]>::new("cells")).unwrap();
            let whole = cells.get("web").unwrap().unwrap().value().to_vec();
            cells.insert("web", &whole[..whole.len() / 2]).unwrap();
        }
        txn.commit().unwrap();
        drop(database);
        let listener = TcpListener::bind(self.address).unwrap();
        let store = CellStore::open(&self.store()).unwrap();
        *server =
            Some(CellServer::start(listener, store, ServerLimits::default(), Protection::None).unwrap());
    }
}
