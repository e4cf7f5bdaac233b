//! The back end "etcd" where etcd has authentication enabled: who may do what, and how it is told.

#[path = "common/cluster.rs"]
mod cluster;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::Cluster;
use ft_arbiter::etcd::{EtcdLogin, EtcdSettings};
use ft_arbiter::{Arbiter, ArbiterError, Cell, CellId, EtcdArbiter, Outcome};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const PASSWORD: &str = "not a secret";
const ROOT: &str = "root";

fn cell(generation: u64) -> Cell {
    Cell { id: CellId(0xce11), generation, owner: Some("alpha".into()), standby: None }
}

/// A user, and its permissions: each for the keys from one up to another.
type User<'a> = (&'a str, &'a [(&'a str, [&'a str; 2])]);

/// An etcd with authentication, and a file with everybody's password.
struct Guarded {
    cluster: Cluster,
    home: tempfile::TempDir,
}

impl Guarded {
    fn start(test: &str, users: &[User<'_>]) -> Option<Self> {
        let guarded = Self { cluster: Cluster::start(test, 1, None)?, home: tempfile::tempdir().unwrap() };
        guarded.save(&guarded.home.path().join("password"), PASSWORD, 0o640);
        guarded.ask("/v3/auth/user/add", &json!({ "name": ROOT, "password": PASSWORD }));
        guarded.ask("/v3/auth/role/add", &json!({ "name": ROOT }));
        guarded.ask("/v3/auth/user/grant", &json!({ "user": ROOT, "role": ROOT }));
        for (user, permissions) in users {
            guarded.ask("/v3/auth/user/add", &json!({ "name": user, "password": PASSWORD }));
            guarded.ask("/v3/auth/role/add", &json!({ "name": user }));
            for (kind, [from, to]) in *permissions {
                let (from, to) = (STANDARD.encode(from), STANDARD.encode(to));
                let permission = json!({ "permType": kind, "key": from, "range_end": to });
                guarded.ask("/v3/auth/role/grant", &json!({ "name": user, "perm": permission }));
            }
            guarded.ask("/v3/auth/user/grant", &json!({ "user": user, "role": user }));
        }
        guarded.ask("/v3/auth/enable", &json!({}));
        Some(guarded)
    }

    fn ask(&self, path: &str, body: &Value) {
        self.ask_with(None, path, body);
    }

    fn ask_as_root(&self, path: &str, body: &Value) {
        let login = json!({ "name": ROOT, "password": PASSWORD });
        let answer = self.ask_with(None, "/v3/auth/authenticate", &login);
        self.ask_with(answer["token"].as_str(), path, body);
    }

    fn ask_with(&self, token: Option<&str>, path: &str, body: &Value) -> Value {
        let endpoint = &self.cluster.settings("/").endpoints[0];
        let mut request = ureq::post(format!("{endpoint}{path}"));
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
        let mut answer = request.send(body.to_string()).unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    fn save(&self, path: &Path, text: &str, mode: u32) {
        fs::write(path, format!("{text}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn login(&self, user: &str) -> EtcdLogin {
        EtcdLogin { user: user.into(), password_file: self.home.path().join("password") }
    }

    fn connect(&self, login: Option<EtcdLogin>) -> EtcdArbiter {
        EtcdArbiter::new(&EtcdSettings { login, ..self.cluster.settings("/ftd/") }, "web")
    }
}

fn refused(what: Result<Option<Cell>, ArbiterError>, words: &[&str]) {
    let error = what.unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

fn not_attempted(outcome: Outcome, words: &[&str]) {
    let Outcome::NotAttempted(error) = outcome else { panic!("{outcome:?}") };
    refused(Err(error), words);
}

#[test]
fn each_permission_that_a_set_needs_is_missed_by_the_probe() {
    let all = ["/ftd/", "/ftd0"];
    let users: &[User<'_>] = &[
        ("ftd", &[("READWRITE", all)]),
        ("reader", &[("READ", all)]),
        ("half", &[("READ", all), ("READWRITE", ["/ftd/web/probe", "/ftd/web/q"])]),
        ("stranger", &[("READWRITE", ["/other/", "/other0"])]),
    ];
    let Some(guarded) = Guarded::start("each_permission", users) else { return };
    let mut ftd = guarded.connect(Some(guarded.login("ftd")));
    assert_eq!(ftd.probe(), Ok(None));
    assert_eq!(ftd.compare_and_set(None, cell(1)), Outcome::Won(cell(1)));
    assert_eq!(ftd.probe(), Ok(Some(cell(1))));
    for user in ["reader", "half"] {
        let mut arbiter = guarded.connect(Some(guarded.login(user)));
        assert_eq!(arbiter.read(), Ok(Some(cell(1))));
        let words = ["permission denied", user, "needs a role", "/ftd/web/cell"];
        refused(arbiter.probe(), &words);
        not_attempted(arbiter.compare_and_set(Some(1), cell(2)), &words);
    }
    let mut stranger = guarded.connect(Some(guarded.login("stranger")));
    refused(stranger.read(), &["permission denied", "the prefix"]);
    not_attempted(stranger.compare_and_set(Some(1), cell(2)), &["permission denied"]);
    assert_eq!(ftd.read(), Ok(Some(cell(1))));
}

#[test]
fn who_cannot_log_in_is_told_why_and_a_new_password_is_read_when_the_old_one_ends() {
    let users: &[User<'_>] = &[("ftd", &[("READWRITE", ["/ftd/", "/ftd0"])])];
    let Some(guarded) = Guarded::start("who_cannot_log_in", users) else { return };
    let set = |login| guarded.connect(login).compare_and_set(None, cell(1));
    not_attempted(set(None), &["authentication enabled", "set user"]);
    not_attempted(set(Some(guarded.login("nobody"))), &["authentication failed", "check user"]);
    let file = guarded.home.path().join("other");
    let other = || Some(EtcdLogin { user: "ftd".into(), password_file: file.clone() });
    not_attempted(set(other()), &["/other", "No such file"]);
    guarded.save(&file, "wrong", 0o600);
    not_attempted(set(other()), &["authentication failed"]);
    guarded.save(&file, "", 0o600);
    not_attempted(set(other()), &["first line is empty"]);
    for mode in [0o604, 0o644, 0o602] {
        guarded.save(&file, PASSWORD, mode);
        not_attempted(set(other()), &["everybody may use it", "chmod o="]);
    }
    guarded.save(&file, PASSWORD, 0o600);
    assert_eq!(set(other()), Outcome::Won(cell(1)));

    let mut arbiter = guarded.connect(other());
    assert_eq!(arbiter.read(), Ok(Some(cell(1))));
    // A new password ends what the old one was given.
    guarded.ask_as_root("/v3/auth/user/changepw", &json!({ "name": "ftd", "password": "another" }));
    not_attempted(arbiter.compare_and_set(Some(1), cell(2)), &["authentication failed"]);
    guarded.save(&file, "another", 0o600);
    assert_eq!(arbiter.read(), Ok(Some(cell(1))));
    guarded.ask_as_root("/v3/auth/user/changepw", &json!({ "name": "ftd", "password": PASSWORD }));
    guarded.save(&file, PASSWORD, 0o600);
    assert_eq!(arbiter.compare_and_set(Some(1), cell(2)), Outcome::Won(cell(2)));
}

#[test]
fn a_login_at_an_etcd_without_users_is_refused() {
    let Some(cluster) = Cluster::start("a_login_at_an_etcd_without_users", 1, None) else { return };
    let guarded = Guarded { cluster, home: tempfile::tempdir().unwrap() };
    guarded.save(&guarded.home.path().join("password"), PASSWORD, 0o600);
    let mut arbiter = guarded.connect(Some(guarded.login("ftd")));
    refused(arbiter.read(), &["authentication is not enabled", "leave out user"]);
    assert_eq!(guarded.connect(None).read(), Ok(None));
}
