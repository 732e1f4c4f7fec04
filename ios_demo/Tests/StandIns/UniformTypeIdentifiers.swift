// Stand-in for Uniform Type Identifiers: the declarations that the app uses, to type-check against.

public struct UTType: Sendable {
    public static let folder = UTType()
    public static let zip = UTType()
}
