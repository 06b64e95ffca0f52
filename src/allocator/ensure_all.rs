//! Many ensures of one caller: each as if it had come alone, in their order.

use std::collections::{HashMap, HashSet};

use tokio::sync::mpsc;

use super::{
    Allocator, Error,
    command::{Answer, EnsureAnswer, Job, Outcome, Request},
};
use crate::{domain::request::EnsureRequest, store::placements};

/// How many wait in the queue at once: a large batch leaves room for others, and goes on where they left off.
const STEP: usize = 500;

type Ensured = Result<EnsureAnswer, Error>;

impl Allocator {
    /// Ensures each project in turn, in the order given. One that is refused fails alone.
    ///
    /// # Errors
    /// [`Error::Overloaded`], [`Error::ShuttingDown`] or [`Error::Store`] where nothing was done.
    pub async fn ensure_all(
        &self,
        requests: Vec<EnsureRequest>,
        request_id: &str,
    ) -> Result<Vec<Ensured>, Error> {
        let known = requests.iter().filter(|request| self.placed.may_include(&request.project_id));
        let mut ids: Vec<String> = known.map(|request| request.project_id.to_string()).collect();
        ids.sort_unstable();
        ids.dedup();
        let held = if ids.is_empty() {
            HashMap::new()
        } else {
            let mut conn = self.store.acquire().await?;
            placements::list_projects(&mut conn, &ids).await?
        };

        let mut answers: Vec<Option<Ensured>> = Vec::with_capacity(requests.len());
        let mut open = Vec::new();
        let mut changing = HashSet::new();
        for (place, request) in requests.into_iter().enumerate() {
            // What was read is not what a project holds once an earlier request for it is done.
            let record = held.get(&request.project_id).filter(|_| !changing.contains(&request.project_id));
            if let Some(record) = record.filter(|record| request.is_satisfied_by(&record.project)) {
                let view = self.view(record.clone());
                answers.push(Some(Ok(EnsureAnswer { outcome: Outcome::Unchanged, view })));
            } else {
                answers.push(None);
                changing.insert(request.project_id.clone());
                open.push((place, request));
            }
        }
        let mut open = open.into_iter().peekable();
        let mut done = false;
        while open.peek().is_some() {
            let step: Vec<_> = open.by_ref().take(STEP.min(self.options.queue_limit)).collect();
            let (places, step): (Vec<_>, Vec<_>) = step.into_iter().unzip();
            match self.ensure_step(step, request_id).await {
                Ok(step) => {
                    done = true;
                    for (place, answer) in places.into_iter().zip(step) {
                        answers[place] = Some(answer);
                    }
                }
                // What was done is told; the rest was not.
                Err(error) if done => {
                    let rest = places.into_iter().chain(open.by_ref().map(|(place, _)| place));
                    for place in rest {
                        answers[place] = Some(Err(error.clone()));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Err(Error::ShuttingDown))).collect())
    }

    /// Puts all of them into the queue, or none: the combiner takes them in their order.
    async fn ensure_step(&self, step: Vec<EnsureRequest>, request_id: &str) -> Result<Vec<Ensured>, Error> {
        let places = self.queue.try_reserve_many(step.len()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => Error::Overloaded { limit: self.options.queue_limit },
            mpsc::error::TrySendError::Closed(()) => Error::ShuttingDown,
        })?;
        let mut waiting = Vec::with_capacity(step.len());
        for (place, request) in places.zip(step) {
            let (job, answer) = Job::new(request_id.to_owned(), Request::Ensure(request));
            place.send(job);
            waiting.push(answer);
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for answer in waiting {
            answers.push(match answer.await {
                Ok(Ok(Answer::Ensured(answer))) => Ok(answer),
                Ok(Ok(answer)) => unreachable!("an ensure is answered as one, not by {answer:?}"),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(Error::ShuttingDown),
            });
        }
        Ok(answers)
    }
}
