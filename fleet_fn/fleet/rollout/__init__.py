"""Change an application's rollout: pure changes of its object, and the session that writes them."""
