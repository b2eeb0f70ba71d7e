use actix_web::HttpRequest;

/// Whether the client's library says that it has sent this request before: those of OpenAI try again by themselves when an answer is lost.
pub(super) fn is_repetition(request: &HttpRequest) -> bool {
    let count = request.headers().get("x-stainless-retry-count").and_then(|count| count.to_str().ok());
    count.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0)
}
