"""One module per protocol turns an `AccessRequest` into an `Operation`: what is being done."""
