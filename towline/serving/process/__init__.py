"""The server process: sockets, workers, connections, shutdown."""
