"""The web console: fleets on one screen."""
