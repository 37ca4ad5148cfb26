"""One module per screen; each has `build(desk) -> Router` and asks the API's own functions."""
