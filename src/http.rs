//! Requests that this program makes itself: to the URL for webhooks, and as a client of a server.

use reqwest::{Client, ClientBuilder, redirect};

/// A client that follows no redirect, over rustls where the URL says `https`.
///
/// What reqwest was built with has no cryptography of its own, and a client made in another way panics without it.
#[expect(clippy::disallowed_methods, reason = "this is where clients come from")]
pub fn client() -> ClientBuilder {
    // Refused when there is one already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().redirect(redirect::Policy::none())
}
