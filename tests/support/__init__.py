"""What several tests need: servers, processes, firmware."""
