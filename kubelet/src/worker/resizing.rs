//! What a worker does about a pod that is to have another size, and what it says of it.

use std::sync::Arc;

use berth_runtime::interface::{Resize, Resized, SandboxStatus};
use k8s_openapi::api::core::v1::Pod;

use super::apply::{Outcome, chain};
use super::materials::Sizes;
use super::memory::{Failure, Operation};
use super::plan::{Action, resizing::Step};
use super::{Context, Waiting, Wish, Worker, members, runs};
use crate::events::Severity;
use crate::resize::{self, LOOSENED_LABEL, SIZE_LABEL, Size, UnderWay};

impl Worker {
    /// Takes in what waits for room, and what has come into force.
    pub(super) fn note_resize(&mut self, wish: &Wish, sandboxes: &[SandboxStatus]) {
        self.note_waiting(wish.waiting.as_ref());
        let pod = &*wish.pod;
        let is_settled = resize::is_settled(pod, runs::live_sandbox(sandboxes));
        match (self.memory.resize.under_way.take(), is_settled) {
            (Some(done), true) => {
                let message = resize::told("completed", pod, (done.generation, ""));
                self.context.events.pod(pod, Severity::Normal, "ResizeCompleted", message);
            }
            (None, false) => {
                let generation = pod.metadata.generation;
                self.memory.resize.under_way = Some(UnderWay { generation, error: None });
            }
            (same, _) => self.memory.resize.under_way = same,
        }
    }

    fn note_waiting(&mut self, waiting: Option<&Waiting>) {
        let pending = waiting.map(|waiting| &waiting.pending);
        let known = self.memory.resize.pending.as_ref();
        let key = |pending: &resize::Pending| (pending.why, pending.generation);
        if let Some(waiting) = waiting
            && known.map(key) != pending.map(key)
        {
            let resize::Pending { why, message, generation } = &waiting.pending;
            let text = resize::told(why.reason(), &waiting.pod, (*generation, message));
            self.context.events.pod(&waiting.pod, Severity::Warning, why.event(), text);
        }
        self.memory.resize.pending = pending.cloned();
    }

    /// The pod was allocated another size.
    pub(super) fn note_allocation(&mut self, before: &Pod, after: &Pod) {
        if resize::pod_size(before) == resize::pod_size(after) {
            return;
        }
        let generation = after.metadata.generation;
        let message = resize::told("started", after, (generation, ""));
        self.context.events.pod(after, Severity::Normal, "ResizeStarted", message);
        self.memory.resize.under_way = Some(UnderWay { generation, error: None });
        // What could not be done for the old size says nothing of the new one.
        self.memory.retries.remove(&Operation::Resize);
    }

    pub(super) fn note_resize_failure(&mut self, failure: Failure) {
        let pod = Arc::clone(&self.wishes.borrow().pod);
        let Some(under_way) = &mut self.memory.resize.under_way else {
            return;
        };
        if under_way.error.is_none() {
            let error = (under_way.generation, failure.message.as_str());
            let message = resize::told("error", &pod, error);
            self.context.events.pod(&pod, Severity::Warning, "ResizeError", message);
        }
        under_way.error = Some(failure.message);
    }

    /// Begins one step of a resize.
    pub(super) fn resize(
        &mut self,
        context: Arc<Context>,
        pod: Arc<Pod>,
        sandboxes: &[SandboxStatus],
        action: Action,
    ) {
        let Action::Resize { sandbox, step } = action else {
            return;
        };
        let Some(status) = sandboxes.iter().find(|s| s.id == sandbox).cloned() else {
            return;
        };
        self.spawn(Operation::Resize, None, async move {
            let sizes = match context.materials.sizes(&pod) {
                Ok(sizes) => sizes,
                Err(failure) => return Outcome::Failed(failure),
            };
            let steps = resizes(&pod, &status, (&step, &sizes));
            match context.runtime.resize(&sandbox, steps).await {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(Failure::new("Error", chain(&error))),
            }
        });
    }
}

/// What the runtime has to set for a step.
fn resizes(pod: &Pod, sandbox: &SandboxStatus, (step, sizes): (&Step, &Sizes)) -> Vec<Resize> {
    let whole = |resources, label: &str| Resize {
        of: Resized::Pod,
        resources,
        labels: [(label.to_owned(), resize::pod_size(pod))].into(),
    };
    let names = match step {
        Step::Loosen => {
            let wide = resize::loosest(&sandbox.config.resources, &sizes.pod);
            return vec![whole(wide, LOOSENED_LABEL)];
        }
        Step::Settle => return vec![whole(sizes.pod.clone(), SIZE_LABEL)],
        Step::Containers(names) => names,
    };
    let one = |name: &String| {
        let (_, container) = members::find(pod, name)?;
        let records = sandbox.containers.iter();
        let record = records.rev().find(|record| record.config.name == *name)?;
        Some(Resize {
            of: Resized::Container(record.id.clone()),
            resources: sizes.containers.get(name)?.clone(),
            labels: [(SIZE_LABEL.to_owned(), Size::of(pod, &container).label())].into(),
        })
    };
    names.iter().filter_map(one).collect()
}
