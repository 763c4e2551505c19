"""Rollouts: pure changes of an application's object, and their writing."""
