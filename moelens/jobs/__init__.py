"""JOBS: files of requests to files of results, which lose nothing however often they are stopped."""
