package resourceallocator.clients;

/** What came is not what the step says. */
final class Unexpected extends RuntimeException {
    private static final long serialVersionUID = 1;

    Unexpected(String problem) {
        super(problem);
    }
}
