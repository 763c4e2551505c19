"""Events from Drogue Cloud's MQTT integration: taken, delivered, acknowledged."""
