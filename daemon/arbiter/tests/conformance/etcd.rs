//! The back end "etcd" on a real etcd of one member, which all claims share while they run.

use crate::cluster::Cluster;
use crate::suite::Site;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ft_arbiter::{Arbiter, EtcdArbiter};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, Weak};

/// A cell under a prefix of its own.
pub struct EtcdSite {
    etcd: Arc<Cluster>,
    prefix: String,
}

impl EtcdSite {
    pub fn new(claim: &str) -> Option<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        let etcd = match shared.upgrade() {
            Some(etcd) => etcd,
            None => Arc::new(Cluster::start(claim, 1, None)?),
        };
        *shared = Arc::downgrade(&etcd);
        Some(Self { etcd, prefix: format!("/{claim}/") })
    }

    fn ask(&self, path: &str, body: &Value) -> Value {
        let [endpoint] = &*self.etcd.settings(&self.prefix).endpoints else { panic!("it has one member") };
        let mut answer = ureq::post(format!("{endpoint}{path}")).send(body.to_string()).unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }
}

impl Site for EtcdSite {
    fn connect(&self) -> Box<dyn Arbiter> {
        Box::new(EtcdArbiter::new(&self.etcd.settings(&self.prefix), "web"))
    }

    fn damage(&self) {
        let key = STANDARD.encode(format!("{}web/cell", self.prefix));
        let answer = self.ask("/v3/kv/range", &json!({ "key": key }));
        let whole = STANDARD.decode(answer["kvs"][0]["value"].as_str().unwrap()).unwrap();
        let half = STANDARD.encode(&whole[..whole.len() / 2]);
        self.ask("/v3/kv/put", &json!({ "key": key, "value": half }));
    }
}
