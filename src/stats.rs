//! `berth stats`: what the pods of this node use, from their cgroups.

use std::time::Duration;

use anyhow::Result;
use berth_runtime::interface::{PodUsage, Usage};

use crate::cli::PodsFlags;
use crate::control;
use crate::pods::table;
use crate::settings::Places;

/// Between the two readings that processor use is told from.
const INTERVAL: Duration = Duration::from_secs(1);

/// Prints one line a container.
pub(crate) async fn run(flags: PodsFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let before = control::usage(&places).await?;
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&before)?);
        return Ok(());
    }
    tokio::time::sleep(INTERVAL).await;
    let after = control::usage(&places).await?;
    let head = ["NAMESPACE", "POD", "CONTAINER", "CPU(cores)", "MEMORY(bytes)", "PROCESSES"];
    let mut rows = vec![head.map(str::to_owned)];
    for pod in &after {
        rows.extend(lines(pod, &before));
    }
    print!("{}", table(&rows));
    Ok(())
}

fn lines(pod: &PodUsage, before: &[PodUsage]) -> Vec<[String; 6]> {
    let earlier = before.iter().flat_map(|pod| &pod.containers);
    let line = |container: &berth_runtime::interface::ContainerUsage| {
        let last = earlier.clone().find(|one| one.id == container.id).map(|one| &one.usage);
        let usage = &container.usage;
        let memory = usage.memory.as_ref().map(|m| format!("{}Mi", m.working_set_bytes >> 20));
        [
            pod.pod.namespace.clone(),
            pod.pod.name.clone(),
            container.name.clone(),
            millicores(last, usage).map_or("-".to_owned(), |millis| format!("{millis}m")),
            memory.unwrap_or("-".to_owned()),
            usage.processes.map_or("-".to_owned(), |count| count.to_string()),
        ]
    };
    pod.containers.iter().map(line).collect()
}

/// Processor use between two readings, in thousandths of a processor.
fn millicores(before: Option<&Usage>, after: &Usage) -> Option<u64> {
    let before = before?;
    let used_us = after.cpu.as_ref()?.total_us.checked_sub(before.cpu.as_ref()?.total_us)?;
    let passed_ms = u64::try_from(after.at_ms.checked_sub(before.at_ms)?).ok()?;
    used_us.checked_div(passed_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_runtime::interface::CpuUsage;

    #[test]
    fn processor_use_is_told_in_thousandths() {
        let at = |at_ms, total_us| Usage {
            at_ms,
            cpu: Some(CpuUsage { total_us, ..CpuUsage::default() }),
            ..Usage::default()
        };
        assert_eq!(millicores(Some(&at(0, 0)), &at(1000, 250_000)), Some(250));
        assert_eq!(millicores(None, &at(1000, 1)), None);
        assert_eq!(millicores(Some(&at(5, 9)), &at(5, 9)), None);
    }
}
