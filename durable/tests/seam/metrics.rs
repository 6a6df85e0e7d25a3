use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower_jobs::JobMetrics;
use tower_jobs_durable::{Claimed, Durable, DurableContext, DurableId};

use super::{Mail, memory::Memory, soon};

#[tokio::test]
async fn store_and_jobs_are_published() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let memory = Memory::default();
    let _durable = Durable::builder(memory.clone())
        .register(|_: Mail, _: DurableContext| async {})
        .metrics(&JobMetrics::new())
        .start();
    memory.with(Claimed {
        id: DurableId::new("1"),
        kind: "mail".into(),
        payload: br#"{"to":"ada"}"#.to_vec(),
        starts: 1,
        ready_since: Some(std::time::SystemTime::now()),
    });
    memory.verdicts(1).await;
    let mut seen = Vec::new();
    soon("the metrics", async {
        while !["dead", "started", "ended"].iter().all(|what| seen.contains(what)) {
            for (key, _, _, value) in snapshotter.snapshot().into_vec() {
                let labels: Vec<_> = key.key().labels().map(|label| label.value()).collect();
                match (key.key().name(), value) {
                    ("tower_jobs_durable_jobs", DebugValue::Gauge(count)) if labels == ["dead"] => {
                        assert_eq!(count.into_inner(), 3.0);
                        seen.push("dead");
                    }
                    ("tower_jobs_durable_start_seconds", DebugValue::Histogram(times))
                        if labels == ["mail"] =>
                    {
                        assert_eq!(times.len(), 1);
                        seen.push("started");
                    }
                    ("tower_jobs_ended_total", DebugValue::Counter(1)) => seen.push("ended"),
                    _ => {}
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}
