"""From records, logs and heartbeats to the tables that results/ reads: metrics.parquet and runs.parquet."""
