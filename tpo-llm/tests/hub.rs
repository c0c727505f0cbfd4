//! The hub client against a small server on this machine.
#![cfg(feature = "hub")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use tpo_llm::LlmError;
use tpo_llm::hub::HubRepo;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// Serves the hub's protocol for one repository `tpo/tiny`.
fn serve(files: &[(&str, Vec<u8>)], listing: Option<String>, short: bool) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    let files: HashMap<String, Vec<u8>> = files
        .iter()
        .map(|(n, b)| (n.to_string(), b.clone()))
        .collect();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else {
                continue;
            };
            let headers: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|l| !l.is_empty())
                .collect();
            let path = first.split(' ').nth(1).unwrap().to_string();
            log.lock().unwrap().push(path.clone());
            let range = headers.iter().find_map(|h| {
                let h = h.to_ascii_lowercase();
                h.strip_prefix("range: bytes=").map(String::from)
            });
            let mut reply = |status: &str, extra: &str, body: &[u8]| {
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{extra}\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(body).unwrap();
            };
            if path == "/api/models/tpo/tiny/revision/main" {
                let list: Vec<String> = files
                    .keys()
                    .map(|n| format!("{{\"rfilename\":\"{n}\"}}"))
                    .collect();
                let json = listing.clone().unwrap_or_else(|| {
                    format!("{{\"sha\":\"{SHA}\",\"siblings\":[{}]}}", list.join(","))
                });
                reply(
                    "200 OK",
                    "content-type: application/json\r\n",
                    json.as_bytes(),
                );
                continue;
            }
            let name = path.strip_prefix(&format!("/tpo/tiny/resolve/{SHA}/"));
            let Some(body) = name.and_then(|n| files.get(n)) else {
                reply("404 Not Found", "", b"nothing here");
                continue;
            };
            let range = range.unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let from: usize = from.parse().unwrap();
            let end = to
                .parse()
                .map_or(body.len(), |t: usize| t + 1)
                .min(body.len());
            let end = if short { end.min(3) } else { end };
            let extra = format!(
                "etag: \"{}\"\r\nx-repo-commit: {SHA}\r\ncontent-range: bytes {from}-{}/{}\r\n",
                name.unwrap().replace('/', "_"),
                end.max(1) - 1,
                body.len()
            );
            reply("206 Partial Content", &extra, &body[from.min(end)..end]);
        }
    });
    Server { url, requests }
}

fn repo(server: &Server, cache: &std::path::Path) -> HubRepo {
    HubRepo::new("tpo/tiny")
        .endpoint(&server.url)
        .cache_dir(cache)
}

fn problem<T: std::fmt::Debug>(result: Result<T, LlmError>) -> String {
    match result {
        Err(LlmError::Hub { problem, .. }) => problem,
        other => panic!("expected a hub error, got {other:?}"),
    }
}

#[test]
fn fetches_matching_files_once() {
    let weights: Vec<u8> = (0..50_000_u32).map(|i| i as u8).collect();
    let files = [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights.clone()),
        ("onnx/extra.json", b"[1]".to_vec()),
        ("pytorch_model.bin", vec![0; 10]),
    ];
    let server = serve(&files, None, false);
    let cache = tempfile::tempdir().unwrap();
    let hub = repo(&server, cache.path());
    assert_eq!(hub.cached(), None);

    let mut seen = HashMap::new();
    let dir = hub
        .fetch(|p| {
            assert_eq!(p.files, 3);
            assert!(p.index < 3 && p.bytes <= p.total);
            seen.insert(p.file.clone(), (p.bytes, p.total));
        })
        .unwrap();
    assert_eq!(seen["model.safetensors"], (50_000, 50_000));
    assert_eq!(
        std::fs::read(dir.join("model.safetensors")).unwrap(),
        weights
    );
    assert_eq!(std::fs::read(dir.join("onnx/extra.json")).unwrap(), b"[1]");
    assert!(!dir.join("pytorch_model.bin").exists());

    let before = server.requests.lock().unwrap().len();
    let again = hub
        .fetch(|p| panic!("nothing is left to download, not {p:?}"))
        .unwrap();
    assert_eq!(
        (again, server.requests.lock().unwrap().len()),
        (dir.clone(), before + 1)
    );

    let weights_only = repo(&server, cache.path()).files(["*.safetensors"]);
    assert_eq!(weights_only.cached(), Some(dir.clone()));
    assert_eq!(repo(&server, cache.path()).files(["*.gguf"]).cached(), None);

    // The server is gone: the error names what is on disk.
    let gone = weights_only.endpoint("http://127.0.0.1:9");
    assert!(problem(gone.fetch(|_| {})).contains(&dir.display().to_string()));
}

#[test]
fn what_does_not_exist() {
    let server = serve(&[("config.json", b"{}".to_vec())], None, false);
    let cache = tempfile::tempdir().unwrap();
    let hub = || repo(&server, cache.path());
    assert!(problem(hub().files(["*.gguf"]).fetch(|_| {})).contains("none of its 1 files"));
    assert!(problem(hub().revision("v9").fetch(|_| {})).contains("check the spelling"));
    for name in ["", "a/b/c", "../x", "a b", "/a", "..", "a/.."] {
        assert!(
            problem(HubRepo::new(name).fetch(|_| {})).contains("owner/name"),
            "{name}"
        );
    }
    assert!(problem(hub().revision("../../x").fetch(|_| {})).contains("not a branch"));
}

#[test]
fn hostile_listings_and_short_files() {
    let cache = tempfile::tempdir().unwrap();
    let file = [("config.json", b"{\"a\": 1}".to_vec())];
    for (listing, part) in [
        (
            format!("{{\"sha\":\"{SHA}\",\"siblings\":[{{\"rfilename\":\"../../x.json\"}}]}}"),
            "outside",
        ),
        (
            "{\"sha\":\"../x\",\"siblings\":[]}".to_string(),
            "as its commit",
        ),
        ("not json".to_string(), "cannot list"),
    ] {
        let server = serve(&file, Some(listing), false);
        let text = problem(repo(&server, cache.path()).fetch(|_| {}));
        assert!(text.contains(part), "{text}");
    }
    let server = serve(&file, None, true);
    let hub = repo(&server, cache.path());
    let text = problem(hub.fetch(|_| {}));
    assert!(text.contains("3 of 8 bytes"), "{text}");
    assert_eq!(hub.cached(), None);
}
