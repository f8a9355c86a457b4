//! A state directory with everything that `tropis` looks for, and the program run on it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use tempfile::TempDir;

/// A state directory; what is in it goes with it.
pub(crate) struct Mesh {
    folder: TempDir,
}

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["objects", "cluster", "reported", "sockets", "logs"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn tropis(&self, arguments: &[&str]) -> Ran {
        self.tropis_with(arguments, "")
    }

    pub(crate) fn tropis_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tropis"));
        command.arg("--state").arg(self.folder.path()).args(arguments);
        command.env_remove("TROPIS_STATE").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), out: text(output.stdout), error: text(output.stderr) }
    }

    /// The output of a run that must succeed.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let ran = self.tropis(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran.out
    }

    /// A program's socket: each `METHOD TARGET` has its answer, everything else is 404. It lives as long as the test.
    pub(crate) fn serve(&self, name: &str, answers: &[(&str, &str)]) {
        let listener = UnixListener::bind(self.path("sockets").join(name)).unwrap();
        let answers: Vec<(String, String)> = answers.iter().map(|(asked, body)| ((*asked).to_owned(), (*body).to_owned())).collect();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                    let asked = line.rsplit_once(' ').map_or(String::new(), |(asked, _)| asked.to_owned());
                    // The head's other lines, up to the empty one.
                    while line.trim_end() != "" {
                        line.clear();
                        if reader.read_line(&mut line).is_err() {
                            return;
                        }
                    }
                    line.clear();
                    let found = answers.iter().find(|(known, _)| *known == asked);
                    let (status, body) = found.map_or(("404 Not Found", ""), |(_, body)| ("200 OK", body.as_str()));
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            }
        });
    }
}

/// The shop that the unit tests tell stories about.
pub(crate) fn shop() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/shop.yaml")).unwrap()
}
