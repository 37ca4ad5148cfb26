"""The console: what the model sees, what it is unsure of, what people answer, whether retraining helped, what serves.

    browser -> session (a signed cookie made from an API key) -> page -> the API's own functions -> Jinja -> HTML + SVG

Decided:

- Pages are rendered here, from the functions that the API's handlers call; the console has no query, rule or number of its
  own and imports neither tables nor the database (tests/serving/web/test_web_house.py).
- Plain HTML first: every action is a form that works without JavaScript and ends in a redirect. htmx renews the parts that
  move; its files are copied out of the PyPI package django-htmx when the console is built (`python -m serving.web.assets`).
- A log-in is an API key given once. The cookie holds the key's id, signed; each request looks the key up in the snapshot
  that the API uses, so a revoked key ends its sessions within a second.
- Strict Content-Security-Policy: nothing inline, nothing from elsewhere, so charts carry presentation attributes and no styles.
- Every chart has a table twin behind it, for screen readers and for copying.

Rejected: a single-page application (a build step, half a megabyte, a second copy of every rule), NiceGUI (ten times the
bytes, no strict CSP), WebSockets (events flow one way), server-side sessions (a table more, and replicas would share it).
"""
