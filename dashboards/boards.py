"""The four dashboards, each the answer to one person's question."""

from __future__ import annotations

from dashboards.panels import Dashboard, Panel, Query
from dashboards.promql import buckets, of, quantile, quantiles, rate, to

HEARD, LATENCY, BATCHING, QUALITY = (
    "soundstage-heard",
    "soundstage-latency",
    "soundstage-batching",
    "soundstage-quality",
)
TO_HEARD, TO_LATENCY = to(HEARD, "What is being heard"), to(LATENCY, "Latency")
TO_BATCHING, TO_QUALITY = to(BATCHING, "Batching and scaling"), to(QUALITY, "Quality and delivery")

_STEP = "ray_soundstage_step_seconds"
_REQUEST = "ray_soundstage_request_seconds"
_ANALYSES = 'route=~"/v1/analyze|/v1/audio/transcriptions"'
_LOUDNESS = "ray_soundstage_loudness_below_full_scale_lu"
_SOUNDS = 'label!~"speech|music|silence"'
_QUEUE = 'step="queue"'
_NOT_OK = 'code!="ok"'
_COUNTED = 'code!="cancelled"'
_FAULTS = 'code=~"overloaded|deadline_exceeded|internal_error"'

_KINDS = (
    "sum by (kind) (label_replace(label_replace("
    f'rate({of("ray_soundstage_sound_seconds_total")}[$__rate_interval]), "kind", "other sounds", "label", ".*"), '
    '"kind", "$1", "label", "(speech|music|silence)")) '
    f"/ scalar({rate('ray_soundstage_audio_seconds_total')})"
)
"""Speech, music, silence and all else, over the audio that came; the sum may be above 1, for they overlap."""

WHAT_IS_HEARD = Dashboard(
    uid=HEARD,
    title="What is being heard",
    description="For content producers: what goes through the service, how loud it is, and how soon captions come.",
    rows=(
        (
            "Now",
            (
                Panel(
                    kind="stat",
                    title="Audio",
                    description="Minutes of programme analysed a minute. 1 is one live programme, or files at the speed of one.",
                    unit="suffix:x",
                    decimals=1,
                    queries=(Query(rate("ray_soundstage_audio_seconds_total"), "audio"),),
                    link=TO_LATENCY,
                    width=4,
                    height=5,
                ),
                Panel(
                    kind="stat",
                    title="Words a minute",
                    description="Words written down, of all programmes together.",
                    unit="suffix:words/min",
                    decimals=0,
                    queries=(Query(f"60 * {rate('ray_soundstage_words_total')}", "words"),),
                    link=TO_QUALITY,
                    width=4,
                    height=5,
                ),
                Panel(
                    kind="stat",
                    title="Sounds a minute",
                    description="Sounds heard beside speech and music, of all programmes together.",
                    unit="suffix:/min",
                    decimals=1,
                    queries=(Query(f"60 * {rate('ray_soundstage_sound_events_total', _SOUNDS)}", "sounds"),),
                    link=TO_QUALITY,
                    width=4,
                    height=5,
                ),
                Panel(
                    kind="stat",
                    title="Loudness",
                    description="Integrated loudness of the programme in the middle: half are louder. EBU R 128 wants -23 LUFS.",
                    unit="suffix:LUFS",
                    decimals=1,
                    minimum=None,
                    queries=(Query(f"-{quantile(0.5, _LOUDNESS)}", "loudness"),),
                    link=TO_QUALITY,
                    width=4,
                    height=5,
                ),
                Panel(
                    kind="stat",
                    title="Live streams",
                    description="Programmes that are being captioned live.",
                    unit="none",
                    decimals=0,
                    queries=(Query(f"sum ({of('ray_soundstage_live_streams')})", "streams"),),
                    link=TO_BATCHING,
                    feed="live",
                    width=4,
                    height=5,
                ),
                Panel(
                    kind="stat",
                    title="Caption delay",
                    description="Live: from the end of what is said to its final caption. One caption in twenty is later.",
                    unit="s",
                    decimals=1,
                    queries=(Query(quantile(0.95, "ray_soundstage_final_delay_seconds"), "p95"),),
                    link=TO_LATENCY,
                    feed="live",
                    warn=3,
                    alarm=5,
                    width=4,
                    height=5,
                ),
            ),
        ),
        (
            "Over time",
            (
                Panel(
                    kind="lines",
                    title="Speech, music and sounds",
                    description="How much of the audio holds each. They overlap, so that the sum may be above 100 %.",
                    unit="percentunit",
                    queries=(Query(_KINDS, "{{kind}}"),),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="bars",
                    title="Most frequent sounds",
                    description="How often each sound was heard in the time that is shown, the ten most frequent ones.",
                    unit="short",
                    decimals=0,
                    queries=(
                        Query(
                            f"topk(10, sum by (label) (increase({of('ray_soundstage_sound_events_total', _SOUNDS)}[$__range])))",
                            "{{label}}",
                            is_instant=True,
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="stack",
                    title="Sounds over time",
                    description="How long each sound was heard, in seconds a minute, the eight that were heard longest.",
                    unit="suffix:s/min",
                    queries=(
                        Query(
                            f"60 * topk(8, {rate('ray_soundstage_sound_seconds_total', _SOUNDS, by='label')})",
                            "{{label}}",
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="lines",
                    title="How fast people speak",
                    description="Words in a minute of speech. News is read at 160 to 180; above 200 captions are hard to follow.",
                    unit="suffix:/min",
                    queries=(
                        Query(
                            f"60 * {rate('ray_soundstage_words_total')} / {rate('ray_soundstage_speech_seconds_total')}",
                            "words a minute of speech",
                        ),
                    ),
                    link=TO_QUALITY,
                    warn=200,
                    width=12,
                ),
            ),
        ),
        (
            "Levels",
            (
                Panel(
                    kind="lines",
                    title="Programme loudness",
                    description="Integrated loudness: the quietest tenth, the middle, the loudest tenth. EBU R 128 wants -23 LUFS "
                    "within 0.5 LU, streaming services -14 to -16.",
                    unit="suffix:LUFS",
                    minimum=None,
                    queries=tuple(
                        Query(f"-{quantile(share, _LOUDNESS)}", legend)
                        for share, legend in ((0.9, "quiet"), (0.5, "middle"), (0.1, "loud"))
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="stack",
                    title="Not fit for delivery",
                    description="Files with a true peak above -1 dBTP, and files without loudness: silent, or shorter than 0.4 s.",
                    unit="short",
                    decimals=0,
                    queries=(
                        Query(
                            f"sum (increase({of('ray_soundstage_true_peak_exceeded_total')}[$__rate_interval]))",
                            "peak too high",
                        ),
                        Query(
                            f"sum (increase({of('ray_soundstage_unmeasurable_loudness_total')}[$__rate_interval]))",
                            "no loudness",
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
            ),
        ),
        (
            "Live",
            (
                Panel(
                    kind="lines",
                    title="Caption and sound delay",
                    description="From the end of what is said to its final caption, and from its start to its first words; from the "
                    "start of a sound to its event. One in twenty is later.",
                    unit="s",
                    queries=(
                        Query(quantile(0.95, "ray_soundstage_final_delay_seconds"), "caption"),
                        Query(quantile(0.95, "ray_soundstage_sound_delay_seconds"), "sound"),
                        Query(quantile(0.95, "ray_soundstage_first_partial_seconds"), "first words"),
                    ),
                    link=TO_LATENCY,
                    feed="live",
                    warn=3,
                    alarm=5,
                    width=12,
                ),
                Panel(
                    kind="lines",
                    title="How far streams are behind",
                    description="By how much analysis is behind what has arrived; one stream in twenty is further.",
                    unit="s",
                    queries=(Query(quantile(0.95, "ray_soundstage_stream_lag_seconds"), "behind"),),
                    link=TO_BATCHING,
                    feed="live",
                    alarm=5,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Live streams over time",
                    description="Open at the same time.",
                    unit="none",
                    queries=(Query(f"sum ({of('ray_soundstage_live_streams')})", "streams"),),
                    link=TO_BATCHING,
                    feed="live",
                    width=6,
                ),
            ),
        ),
    ),
)

LATENCY_VIEW = Dashboard(
    uid=LATENCY,
    title="Latency",
    description="For operators and engineers: how long requests take, where that time goes, and what the slowest wait for.",
    rows=(
        (
            "End to end",
            (
                Panel(
                    kind="lines",
                    title="Requests",
                    description="From the first byte of a request to the last of its answer, uploads included. Long files take long; "
                    "see the real-time factor for what does not depend on length.",
                    unit="s",
                    queries=quantiles(_REQUEST, _ANALYSES),
                    link=TO_BATCHING,
                    width=10,
                ),
                Panel(
                    kind="heatmap",
                    title="Requests, all of them",
                    description="Requests a second by how long they took. Two bands are two kinds of client; a band that climbs is a queue.",
                    unit="s",
                    queries=buckets(_REQUEST, _ANALYSES),
                    link=TO_BATCHING,
                    width=8,
                ),
                Panel(
                    kind="stat",
                    title="Within half their length",
                    description="Clips analysed in at most half their own length over the last hour. The objective is 95 %.",
                    unit="percentunit",
                    decimals=2,
                    maximum=1,
                    is_low_bad=True,
                    warn=0.95,
                    alarm=0.9,
                    queries=(Query("1 - soundstage:clips_slow:ratio_rate1h", "clips"),),
                    link=TO_QUALITY,
                    width=6,
                ),
            ),
        ),
        (
            "Speed",
            (
                Panel(
                    kind="lines",
                    title="Real-time factor",
                    description="Time of a clip's analysis over its length: 0.1 is ten times as fast as listening. Live needs far below 1.",
                    unit="none",
                    decimals=3,
                    queries=quantiles("ray_soundstage_real_time_factor"),
                    link=TO_BATCHING,
                    warn=0.5,
                    alarm=1,
                ),
                Panel(
                    kind="lines",
                    title="Real-time factor of the models",
                    description="Time in which the model runs, over the audio it ran on; exact, from two counters. It falls as batches grow.",
                    unit="none",
                    decimals=3,
                    queries=(
                        Query(
                            f"{rate('ray_soundstage_inference_seconds_total', by='stage')} "
                            f"/ {rate('ray_soundstage_inference_audio_seconds_total', by='stage')}",
                            "{{stage}}",
                        ),
                    ),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="lines",
                    title="Live: behind what has arrived",
                    description="How far analysis of live streams is behind; half, one in twenty, one in a hundred are worse.",
                    unit="s",
                    queries=quantiles("ray_soundstage_stream_lag_seconds"),
                    link=TO_HEARD,
                    feed="live",
                    alarm=5,
                ),
            ),
        ),
        (
            "Where the time goes",
            (
                Panel(
                    kind="stack",
                    title="Time by stage and step",
                    description="Seconds of work and waiting a second, of all requests. What is thick is where time goes; queue means that "
                    "the model was busy with another batch, network the way between replicas.",
                    unit="suffix:s/s",
                    queries=(Query(rate(_STEP + "_sum", by="stage, step"), "{{stage}} {{step}}"),),
                    link=TO_BATCHING,
                    width=12,
                    height=9,
                ),
                Panel(
                    kind="bars",
                    title="The slowest, step by step",
                    description="What one in a hundred exceeds at each step, in the time that is shown: where the time of the slowest goes.",
                    unit="s",
                    queries=(
                        Query(
                            "sort_desc(histogram_quantile(0.99, sum by (stage, step, le) "
                            f"(rate({of(_STEP + '_bucket')}[$__range]))))",
                            "{{stage}} {{step}}",
                            is_instant=True,
                        ),
                    ),
                    link=TO_BATCHING,
                    width=12,
                    height=9,
                ),
                Panel(
                    kind="lines",
                    title="Queue",
                    description="Waiting while the model runs another batch; one in twenty waits longer. Grows with load, shrinks with replicas.",
                    unit="s",
                    queries=(Query(quantile(0.95, _STEP, 'step="queue"', by="stage"), "{{stage}}"),),
                    link=TO_BATCHING,
                    warn=2,
                    alarm=5,
                ),
                Panel(
                    kind="lines",
                    title="Batch wait",
                    description="Waiting for others to share a batch, at most `batch.wait_s` on an idle replica. By Serve, p95.",
                    unit="ms",
                    queries=(Query(quantile(0.95, "ray_serve_batch_wait_time_ms", by="deployment"), "{{deployment}}"),),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="lines",
                    title="Inference",
                    description="One run of the model on one batch; one in twenty is longer. It grows with the batch.",
                    unit="s",
                    queries=(Query(quantile(0.95, _STEP, 'step="inference"', by="stage"), "{{stage}}"),),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="lines",
                    title="Decoding",
                    description="Reading, measuring, finding speech and cutting, a chunk of at most 30 s; p50, p95 and p99.",
                    unit="s",
                    queries=quantiles(_STEP, 'step="decode"'),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="lines",
                    title="Network",
                    description="What a call takes beyond the time inside the stage: choosing a replica, packing, the way there and back.",
                    unit="s",
                    queries=quantiles(_STEP, 'step="network"'),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="lines",
                    title="Finding a replica",
                    description="How long Serve looks for a replica with room; above its few milliseconds all of them are full. p95.",
                    unit="ms",
                    queries=(
                        Query(
                            quantile(0.95, "ray_serve_request_router_fulfillment_time_ms", by="deployment"),
                            "{{deployment}}",
                        ),
                    ),
                    link=TO_BATCHING,
                ),
            ),
        ),
        (
            "All of them",
            (
                Panel(
                    kind="heatmap",
                    title="Queue of the speech model",
                    description="Requests a second by how long they waited while the model ran.",
                    unit="s",
                    queries=buckets(_STEP, 'step="queue"', 'stage="VoiceRecognizer"'),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="heatmap",
                    title="Inference of the speech model",
                    description="Batches a second by how long the model ran.",
                    unit="s",
                    queries=buckets(_STEP, 'step="inference"', 'stage="VoiceRecognizer"'),
                    link=TO_BATCHING,
                ),
                Panel(
                    kind="heatmap",
                    title="Inference of the sound model",
                    description="Batches a second by how long the model ran.",
                    unit="s",
                    queries=buckets(_STEP, 'step="inference"', 'stage="SoundClassifier"'),
                    link=TO_BATCHING,
                ),
            ),
        ),
    ),
)

BATCHING_VIEW = Dashboard(
    uid=BATCHING,
    title="Batching and scaling",
    description="For operators: whether batches fill, whether replicas follow the load, and whether machines have room.",
    rows=(
        (
            "Batches",
            (
                Panel(
                    kind="lines",
                    title="Audio in a batch",
                    description="Half of the batches hold more, and one in twenty more than the second line. At most `batch.max_batch_s`.",
                    unit="s",
                    queries=(
                        Query(quantile(0.5, "ray_soundstage_batch_audio_seconds", by="stage"), "{{stage}} p50"),
                        Query(quantile(0.95, "ray_soundstage_batch_audio_seconds", by="stage"), "{{stage}} p95"),
                    ),
                    link=TO_LATENCY,
                ),
                Panel(
                    kind="lines",
                    title="How full batches are",
                    description="Size over the largest size, by Serve, in the middle. Low is right while little is to do.",
                    unit="percent",
                    maximum=100,
                    queries=(
                        Query(quantile(0.5, "ray_serve_batch_utilization_percent", by="deployment"), "{{deployment}}"),
                    ),
                    link=TO_LATENCY,
                ),
                Panel(
                    kind="lines",
                    title="Size against wait",
                    description="Seconds of audio that a batch gains for each second that requests wait for it: what batching is worth.",
                    unit="suffix:s/s",
                    queries=(
                        Query(
                            f"{rate('ray_soundstage_inference_audio_seconds_total', by='stage')} / "
                            f"{rate(_STEP + '_sum', _QUEUE, by='stage')}",
                            "{{stage}}",
                        ),
                    ),
                    link=TO_LATENCY,
                ),
                Panel(
                    kind="lines",
                    title="How busy the models are",
                    description="Share of the time in which a replica's model runs. Near 100 % with batches that do not grow: more replicas.",
                    unit="percentunit",
                    maximum=1,
                    warn=0.8,
                    queries=(Query("soundstage:model_busy:ratio_rate5m", "{{stage}}"),),
                    link=TO_LATENCY,
                ),
                Panel(
                    kind="lines",
                    title="Audio through the models",
                    description="Seconds of audio a second, of all replicas: the throughput.",
                    unit="suffix:s/s",
                    queries=(Query(rate("ray_soundstage_inference_audio_seconds_total", by="stage"), "{{stage}}"),),
                    link=TO_LATENCY,
                ),
                Panel(
                    kind="lines",
                    title="Waiting in Serve's batch queue",
                    description="Requests that wait to be joined, by Serve. Those that wait while the model runs are under Latency, Queue.",
                    unit="none",
                    queries=(Query(f"sum by (deployment) ({of('ray_serve_batch_queue_length')})", "{{deployment}}"),),
                    link=TO_LATENCY,
                ),
            ),
        ),
        (
            "Replicas",
            (
                Panel(
                    kind="lines",
                    title="Wanted and running",
                    description="Replicas that autoscaling wants, and those that are well. A gap that stays is a machine without room.",
                    unit="none",
                    queries=(
                        Query(
                            f"sum by (deployment) ({of('ray_serve_autoscaling_target_replicas')})",
                            "{{deployment}} wanted",
                        ),
                        Query(
                            f"sum by (deployment) ({of('ray_serve_deployment_replica_healthy')})",
                            "{{deployment}} running",
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="lines",
                    title="Requests held",
                    description="Requests inside the replicas of each deployment.",
                    unit="none",
                    queries=(
                        Query(f"sum by (deployment) ({of('ray_serve_replica_processing_queries')})", "{{deployment}}"),
                    ),
                    link=TO_LATENCY,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Requests without a replica",
                    description="Requests that wait before a deployment since all of its replicas are full.",
                    unit="none",
                    queries=(
                        Query(f"sum by (deployment) ({of('ray_serve_deployment_queued_queries')})", "{{deployment}}"),
                    ),
                    link=TO_LATENCY,
                    warn=32,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Cold starts",
                    description="From the decision for a replica to its first request, model and warm-up included; half took longer.",
                    unit="ms",
                    queries=(
                        Query(
                            "histogram_quantile(0.5, sum by (deployment, le) "
                            f"({of('ray_serve_replica_startup_latency_ms_bucket')}))",
                            "{{deployment}}",
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
                Panel(
                    kind="lines",
                    title="Starts of replicas",
                    description="All since the cluster began. Steps while the load is the same are replicas that die.",
                    unit="none",
                    queries=(
                        Query(
                            f"sum by (deployment) ({of('ray_serve_deployment_replica_starts_total')})", "{{deployment}}"
                        ),
                    ),
                    link=TO_QUALITY,
                    width=12,
                ),
            ),
        ),
        (
            "Machines",
            (
                Panel(
                    kind="lines",
                    title="CPU",
                    description="How busy each node is, whoever keeps it so.",
                    unit="percent",
                    maximum=100,
                    queries=(Query(f"max by (ip) ({of('ray_node_cpu_utilization')})", "{{ip}}"),),
                    link=TO_LATENCY,
                    warn=90,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Memory",
                    description="In use on each node, and what it has.",
                    unit="bytes",
                    queries=(
                        Query(f"max by (ip) ({of('ray_node_mem_used')})", "{{ip}} used"),
                        Query(f"max by (ip) ({of('ray_node_mem_total')})", "{{ip}} total"),
                    ),
                    link=TO_LATENCY,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Object store and disk",
                    description="How full Ray's shared memory is, where uploads and chunks lie, and each node's disk.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"sum by (NodeAddress) ({of('ray_object_store_used_memory')}) / (sum by (NodeAddress) "
                            f"({of('ray_object_store_used_memory')}) + sum by (NodeAddress) ({of('ray_object_store_available_memory')}))",
                            "{{NodeAddress}} object store",
                        ),
                        Query(
                            f"1 - max by (ip) ({of('ray_node_disk_free')}) / (max by (ip) ({of('ray_node_disk_free')}) "
                            f"+ max by (ip) ({of('ray_node_disk_usage')}))",
                            "{{ip}} disk",
                        ),
                    ),
                    link=TO_QUALITY,
                    warn=0.8,
                    alarm=0.9,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="GPU",
                    description="How busy each GPU is.",
                    unit="percent",
                    maximum=100,
                    queries=(Query(of("ray_node_gpus_utilization"), "{{ip}} {{GpuIndex}}"),),
                    link=TO_LATENCY,
                    feed="gpu",
                    width=6,
                ),
            ),
        ),
    ),
)

QUALITY_VIEW = Dashboard(
    uid=QUALITY,
    title="Quality and delivery",
    description="For operators and data scientists: how right the models are in production, what is refused, what is delivered.",
    hours=6,
    rows=(
        (
            "How right it is",
            (
                Panel(
                    kind="lines",
                    title="Word errors",
                    description="Of reference clips that the canary sends, by model version. Above 20 % something is wrong.",
                    unit="percentunit",
                    decimals=1,
                    queries=(
                        Query("max by (model, version) (soundstage_canary_word_error_ratio)", "{{model}} {{version}}"),
                    ),
                    link=TO_HEARD,
                    feed="canary",
                    alarm=0.2,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Sounds named right",
                    description="Of reference sounds that the canary sends, by model version. Below 60 % something is wrong.",
                    unit="percentunit",
                    maximum=1,
                    decimals=1,
                    queries=(Query("min by (model, version) (soundstage_canary_top1_ratio)", "{{model}} {{version}}"),),
                    link=TO_HEARD,
                    feed="canary",
                    is_low_bad=True,
                    warn=0.8,
                    alarm=0.6,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Canary: latency",
                    description="Of one reference clip through the public API, as a client sees it; p50 and p95. Dots are single requests: each "
                    "opens its trace, where traces are kept.",
                    unit="s",
                    queries=tuple(
                        Query(
                            f"histogram_quantile({share}, sum by (le) "
                            "(rate(soundstage_canary_latency_seconds_bucket[$__rate_interval])))",
                            legend,
                            has_exemplars=share > 0.9,
                        )
                        for share, legend in ((0.5, "p50"), (0.95, "p95"))
                    ),
                    link=TO_LATENCY,
                    feed="canary",
                    width=6,
                ),
                Panel(
                    kind="stat",
                    title="Canary: availability",
                    description="Share of the canary's requests that were answered, over the last hour.",
                    unit="percentunit",
                    decimals=2,
                    maximum=1,
                    queries=(
                        Query(
                            'sum(increase(soundstage_canary_requests_total{result="ok"}[1h])) '
                            "/ sum(increase(soundstage_canary_requests_total[1h]))",
                            "answered",
                        ),
                    ),
                    link=TO_LATENCY,
                    feed="canary",
                    is_low_bad=True,
                    warn=0.995,
                    alarm=0.95,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="Versions that serve",
                    description="Replicas by model version. Two at once is an exchange that is under way, or one that was refused.",
                    unit="none",
                    queries=(
                        Query(
                            f"sum by (model, version) ({of('ray_soundstage_model_served')}) > 0",
                            "{{model}} {{version}}",
                        ),
                    ),
                    link=TO_BATCHING,
                    width=8,
                ),
                Panel(
                    kind="lines",
                    title="Candidate agrees",
                    description="Share of compared requests on which the candidate said what the model that serves said.",
                    unit="percentunit",
                    maximum=1,
                    queries=(
                        Query(
                            f"({rate('ray_soundstage_shadow_agreed_total', by='stage, candidate')} or "
                            f"0 * {rate('ray_soundstage_shadow_compared_total', by='stage, candidate')}) / "
                            f"{rate('ray_soundstage_shadow_compared_total', by='stage, candidate')}",
                            "{{stage}} {{candidate}}",
                        ),
                    ),
                    link=TO_LATENCY,
                    feed="shadow",
                    width=8,
                ),
                Panel(
                    kind="lines",
                    title="Drift of scores",
                    description="Distance between how sure the models were in the last hour and in the week: 0 is the same, above 0.25 "
                    "the material or the model has changed.",
                    unit="none",
                    decimals=2,
                    maximum=1,
                    queries=(Query("soundstage:top_score:drift", "{{stage}} {{version}}"),),
                    link=TO_HEARD,
                    warn=0.25,
                    width=8,
                ),
            ),
        ),
        (
            "What is refused",
            (
                Panel(
                    kind="stack",
                    title="Requests by how they ended",
                    description="Requests a minute. Codes of 4xx are the client's to mend; overloaded, deadline_exceeded and internal_error ours.",
                    unit="suffix:/min",
                    queries=(Query(f"60 * {rate('ray_soundstage_requests_total', by='code')}", "{{code}}"),),
                    link=TO_LATENCY,
                    width=12,
                ),
                Panel(
                    kind="stack",
                    title="Refused and failed, by route and reason",
                    description="The same without what went well.",
                    unit="suffix:/min",
                    queries=(
                        Query(
                            f"60 * {rate('ray_soundstage_requests_total', _NOT_OK, by='route, code')}",
                            "{{route}} {{code}}",
                        ),
                    ),
                    link=TO_LATENCY,
                    width=12,
                ),
            ),
        ),
        (
            "Delivery",
            (
                Panel(
                    kind="lines",
                    title="NiFi: files that wait",
                    description="In each queue of the flow.",
                    unit="none",
                    queries=(
                        Query(
                            "max by (source_name, destination_name) "
                            '(nifi_amount_items_queued{component_type="Connection"})',
                            "{{source_name}} → {{destination_name}}",
                        ),
                    ),
                    link=TO_LATENCY,
                    feed="nifi",
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="NiFi: how full its queues are",
                    description="Of the number at which NiFi stops what comes before: back pressure.",
                    unit="percent",
                    maximum=100,
                    queries=(
                        Query(
                            'max by (source_name, destination_name) (nifi_percent_used_count{component_type="Connection"})',
                            "{{source_name}} → {{destination_name}}",
                        ),
                    ),
                    link=TO_BATCHING,
                    feed="nifi",
                    warn=80,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="NiFi: its oldest file",
                    description="How long the oldest file of each queue has been under way. What only grows is stuck.",
                    unit="s",
                    queries=(
                        Query(
                            "max by (source_name, destination_name) (soundstage_nifi_oldest_file_seconds)",
                            "{{source_name}} → {{destination_name}}",
                        ),
                    ),
                    link=TO_LATENCY,
                    feed="nifi",
                    width=6,
                ),
                Panel(
                    kind="stack",
                    title="Answers of the proxy",
                    description="By HAProxy, a minute; 5xx here and none above are answers that no replica gave.",
                    unit="suffix:/min",
                    queries=(
                        Query(
                            "60 * sum by (code) (rate(haproxy_frontend_http_responses_total[$__rate_interval]))",
                            "{{code}}",
                        ),
                    ),
                    link=TO_BATCHING,
                    feed="haproxy",
                    width=6,
                ),
            ),
        ),
        (
            "Objectives",
            (
                Panel(
                    kind="stat",
                    title="Answered without a fault of ours",
                    description="Over six hours. The objective is 99.5 %.",
                    unit="percentunit",
                    decimals=3,
                    maximum=1,
                    is_low_bad=True,
                    warn=0.995,
                    alarm=0.97,
                    queries=(Query("1 - soundstage:requests_failed:ratio_rate6h", "requests"),),
                    link=TO_LATENCY,
                    width=6,
                ),
                Panel(
                    kind="stat",
                    title="Budget left for faults",
                    description="Of the faults that the objective allows in 30 days. Below 0 it was broken.",
                    unit="percentunit",
                    decimals=1,
                    minimum=None,
                    maximum=1,
                    is_low_bad=True,
                    warn=0.5,
                    alarm=0,
                    queries=(
                        Query(
                            f"1 - ((sum(increase({of('ray_soundstage_requests_total', _FAULTS)}[30d])) or vector(0)) / "
                            f"sum(increase({of('ray_soundstage_requests_total', _COUNTED)}[30d]))) / 0.005",
                            "left",
                        ),
                    ),
                    link=TO_LATENCY,
                    width=6,
                ),
                Panel(
                    kind="lines",
                    title="How fast the budget burns",
                    description="1 spends it in just 30 days. Above 14.4 for an hour somebody is called.",
                    unit="suffix:x",
                    decimals=1,
                    queries=(
                        Query("soundstage:requests_failed:ratio_rate1h / 0.005", "faults"),
                        Query("soundstage:clips_slow:ratio_rate1h / 0.05", "slow clips"),
                    ),
                    link=TO_LATENCY,
                    warn=6,
                    alarm=14.4,
                    width=12,
                ),
            ),
        ),
    ),
)

BOARDS = (WHAT_IS_HEARD, LATENCY_VIEW, BATCHING_VIEW, QUALITY_VIEW)
