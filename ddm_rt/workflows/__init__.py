"""What each command of `ddm-rt` does, as one Python call that prints nothing.

A command whose work crosses rooms has its function here:

- discover: `discover.discover`, and `discover.accept`
- train: `train.train`
- steer: `steer.steer`
- export: `export.export`
- build: `build.build_plans` for TensorRT, `build.build_package` for torch
- upgrade: `upgrade.upgrade`
- train-judge: `train_judge.make_judge`
- cache: `cache.find`
- calibrate: `calibrate.first_set` and `next_set`, then `from_audits`; with a judge `from_judges`
- evaluate, of an audit: `audit.audit`
- card: `audit.card_of`
- export-judge: `export_judge.export_judge`
- compare: `compare.compare`
- serve: `serve.serve`
- doctor: `doctor.checks`
- demo: `demo.demo`

Others call the room that does the work:

- import: `ddm_rt.model.checkpoint.importing.import_run`
- distill: `ddm_rt.train.distill.run.distill`
- distill-decoder: `ddm_rt.train.distill.decoder.distill_decoder`
- export --diffusers: `ddm_rt.export.diffusers.export_diffusers`
- sample: `ddm_rt.sample.pipeline.Pipeline.generate`, with --shards `ddm_rt.serve.bulk.generate_shards`
- evaluate, of a comparison: `ddm_rt.evaluate.run.evaluate_methods`
- compare --record: `ddm_rt.evaluate.comparison.gates.record`
- bench: `ddm_rt.evaluate.latency.bench`
"""
