"""Events that the function emits, and the sink of Knative's SinkBinding."""
