//! Limits of the fake runtime: what was set, and what could not be.

use berth_runtime::interface::{ContainerState, Resize, Resized, RuntimeError, SandboxId};

use super::RuntimeState;

impl RuntimeState {
    /// Sets limits as the engine does: nothing at all where memory in use is above one of them.
    pub(super) fn resize(
        &mut self,
        sandbox: &SandboxId,
        sizes: Vec<Resize>,
    ) -> Result<(), RuntimeError> {
        let missing = || RuntimeError::NotFound(sandbox.to_string());
        let found = self.sandboxes.iter_mut().find(|s| s.id == *sandbox).ok_or_else(missing)?;
        let mut set = Vec::new();
        for size in sizes {
            let Resized::Container(id) = &size.of else {
                set.push((None, size));
                continue;
            };
            let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
            let mut containers = found.containers.iter();
            let Some(place) = containers.position(|c| c.id == *id && running(&c.state)) else {
                continue;
            };
            let name = &found.containers[place].config.name;
            let limit = size.resources.memory_limit_bytes;
            if limit.zip(self.memory_in_use.get(name)).is_some_and(|(limit, used)| *used >= limit) {
                let message = format!("cannot decrease memory limits: {name}");
                return Err(RuntimeError::Invalid(message));
            }
            set.push((Some(place), size));
        }
        for (place, size) in set {
            let (name, resources, labels) = match place {
                None => {
                    let config = &mut found.config;
                    ("the pod".to_owned(), &mut config.resources, &mut config.labels)
                }
                Some(place) => {
                    let config = &mut found.containers[place].config;
                    (config.name.clone(), &mut config.resources, &mut config.labels)
                }
            };
            let (cpu, memory) = (size.resources.cpu_quota_us, size.resources.memory_limit_bytes);
            self.history.push(format!("resize {name} {cpu:?} {memory:?}"));
            *resources = size.resources;
            labels.extend(size.labels);
        }
        Ok(())
    }
}
