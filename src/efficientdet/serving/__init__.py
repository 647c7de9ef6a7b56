"""Detectors behind an HTTP port: `app.create_app` makes the API and the web page, `worker` feeds the detectors."""
