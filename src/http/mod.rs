//! HTTP requests and responses: which jobs belong to a request, and when its response ends.
//!
//! In reading order:
//!
//! 1. `outcome`: how a response ended.
//! 2. `response_end`: the end of one response, and the callbacks that wait for it.
//! 3. `request`: the state of one request: label, response end, group of jobs.
//! 4. `after_response`: jobs that start when the response ends.
//! 5. `jobs`: [`Jobs`](jobs::Jobs), the view of the scheduler that a handler gets.
//! 6. `request_group`: its part for the jobs of one request as a group.
//! 7. `body`: the response future and body, which detect the end of the response.
//! 8. `layer`: the layer that puts a `Jobs` into every request.
//! 9. `atomic`: the layer that runs its inner service as a job.
//! 10. `axum`: the extractor, errors as responses, and the probes.

pub(crate) mod after_response;
pub(crate) mod atomic;
#[cfg(feature = "axum")]
pub(crate) mod axum;
pub(crate) mod body;
pub(crate) mod jobs;
pub(crate) mod layer;
pub(crate) mod outcome;
pub(crate) mod request;
mod request_group;
pub(crate) mod response_end;
