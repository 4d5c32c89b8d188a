"""Reports: figures and tables drawn from files, the trajectory viewer, the claims with their verdicts, the HTML page."""
