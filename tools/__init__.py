"""Programs of the repository: generators of references and checks of the source tree."""
