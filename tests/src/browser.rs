//! A headless Chromium, for tests that look at a page as people do: what it draws, as a picture and as the document it made.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// The names that distributions give it.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// Ten times what a look takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the page's own clock runs before the look. It stands still while an answer is awaited.
const PAGE_TIME_MILLISECONDS: u32 = 2500;
/// Nothing but the page: as root there is no sandbox, and a browser that calls home would be no test of ours.
const OPTIONS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
];

/// Whether a page is seen by day or by night (`prefers-color-scheme`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Light.
    Light,
    /// Dark.
    Dark,
}

/// A browser that is installed.
#[derive(Debug, Clone)]
pub struct Browser {
    program: PathBuf,
}

/// A picture of a page: RGB, rows from the top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Three bytes a pixel.
    pub pixels: Vec<u8>,
}

impl Browser {
    /// The browser of this machine, if it has one.
    pub fn installed() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let places = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        places.into_iter().find(|place| place.is_file()).map(|program| Self { program })
    }

    /// The document as the page's script left it.
    pub async fn document(&self, url: &str) -> io::Result<String> {
        let said = self.run(&["--dump-dom".to_owned(), url.to_owned()]).await?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// What a window of this size shows, which also stays in `file`, as PNG.
    pub async fn picture(&self, url: &str, (width, height): (u32, u32), scheme: Scheme, file: &Path) -> io::Result<Picture> {
        let mut arguments = vec![format!("--window-size={width},{height}"), format!("--screenshot={}", file.display())];
        if scheme == Scheme::Dark {
            arguments.push("--blink-settings=preferredColorScheme=0".to_owned());
        }
        arguments.push(url.to_owned());
        self.run(&arguments).await?;
        Picture::read(file)
    }

    async fn run(&self, more: &[String]) -> io::Result<Vec<u8>> {
        let own = tempfile::tempdir()?;
        let mut command = Command::new(&self.program);
        command.args(OPTIONS).arg(format!("--user-data-dir={}", own.path().display()));
        command.arg(format!("--virtual-time-budget={PAGE_TIME_MILLISECONDS}")).args(more);
        command.stdin(Stdio::null()).kill_on_drop(true).env("HOME", own.path());
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the browser did not end"))??;
        if !output.status.success() {
            return Err(io::Error::other(format!("the browser ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr))));
        }
        Ok(output.stdout)
    }
}

impl Picture {
    /// Reads a PNG of 8 bits a channel, without or with transparency, as browsers write it.
    fn read(file: &Path) -> io::Result<Self> {
        let mut reader = png::Decoder::new(io::BufReader::new(std::fs::File::open(file)?)).read_info().map_err(io::Error::other)?;
        let mut bytes = vec![0; reader.output_buffer_size().ok_or_else(|| io::Error::other("a picture too large"))?];
        let info = reader.next_frame(&mut bytes).map_err(io::Error::other)?;
        let channels = match (info.color_type, info.bit_depth) {
            (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
            (png::ColorType::Rgba, png::BitDepth::Eight) => 4,
            other => return Err(io::Error::other(format!("a picture of another kind: {other:?}"))),
        };
        let pixels = bytes[..info.buffer_size()].chunks_exact(channels).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        Ok(Self { width: info.width, height: info.height, pixels })
    }

    /// The part of its pixels, 0 to 1, for which `of` red, green and blue holds.
    pub fn share(&self, of: impl Fn(u8, u8, u8) -> bool) -> f64 {
        let all = self.pixels.len() / 3;
        let found = self.pixels.chunks_exact(3).filter(|pixel| of(pixel[0], pixel[1], pixel[2])).count();
        if all == 0 { 0.0 } else { found as f64 / all as f64 }
    }

    /// The part of its pixels that have the colour that most have: 1 is blank.
    pub fn blankness(&self) -> f64 {
        let mut counts = std::collections::HashMap::<&[u8], usize>::new();
        for pixel in self.pixels.chunks_exact(3) {
            *counts.entry(pixel).or_default() += 1;
        }
        let most = counts.values().max().copied().unwrap_or_default();
        if self.pixels.is_empty() { 1.0 } else { most as f64 * 3.0 / self.pixels.len() as f64 }
    }

    /// How bright it is, 0 to 1.
    pub fn brightness(&self) -> f64 {
        let sum: u64 = self.pixels.iter().map(|byte| u64::from(*byte)).sum();
        if self.pixels.is_empty() { 0.0 } else { sum as f64 / self.pixels.len() as f64 / 255.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_picture_is_told_from_one_with_something_on_it() {
        let white = Picture { width: 2, height: 2, pixels: vec![255; 12] };
        assert_eq!((white.blankness(), white.brightness()), (1.0, 1.0));
        let mut pixels = vec![255; 12];
        pixels[..3].copy_from_slice(&[200, 0, 0]);
        let spotted = Picture { pixels, ..white };
        assert_eq!(spotted.blankness(), 0.75);
        assert_eq!(spotted.share(|red, green, _| red > 150 && green < 50), 0.25);
    }

    #[test]
    fn a_picture_is_read_back_as_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = png::Encoder::new(io::BufWriter::new(file.reopen().unwrap()), 2, 1);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().unwrap().write_image_data(&[1, 2, 3, 255, 4, 5, 6, 255]).unwrap();
        assert_eq!(Picture::read(file.path()).unwrap(), Picture { width: 2, height: 1, pixels: vec![1, 2, 3, 4, 5, 6] });
    }
}
