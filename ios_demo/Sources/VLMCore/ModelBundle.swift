// Bundle: a folder whose manifest was read, and whose files are checked before an engine sees one.
import Foundation

public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    static let largestManifest = 16 << 20  // bytes: some ten thousand are usual

    /// Reads the manifest, and sees that every file is there with its size. Throws EdgeError.
    public init(_ folder: URL) throws {
        self.folder = folder
        let file = folder.appendingPathComponent(manifestName)
        guard let size = fileSize(file) else {
            throw EdgeError.bundle(
                "\(folder.lastPathComponent) has no \(manifestName)", hint: "choose a bundle's folder")
        }
        if size > ModelBundle.largestManifest { throw EdgeError.bundle("\(manifestName) has \(size) bytes") }
        manifest = try Manifest(readable(file))
        let root = folder.resolvingSymlinksInPath().path + "/"
        for entry in manifest.files {
            let here = self.file(entry)
            guard let size = fileSize(here) else { throw EdgeError.bundle("the bundle lacks \(entry.path)") }
            if size != entry.bytes {
                throw EdgeError.bundle("\(entry.path) has \(size) bytes, not \(entry.bytes): was it copied whole?")
            }
            // A link may lead outside to what the manifest describes, and to nothing else.
            if !here.resolvingSymlinksInPath().path.hasPrefix(root) { try requireHash(entry) { _ in } }
        }
    }

    public func file(_ entry: FileEntry) -> URL { folder.appendingPathComponent(entry.path) }

    /// Hashes every file, so that a damaged one never reaches an engine; `progress` is told which share is done.
    public func check(progress: (Double) throws -> Void = { _ in }) throws {
        let whole = Double(max(manifest.bytes, 1))
        var before = 0
        for entry in manifest.files {
            try requireHash(entry) { try progress(Double(before + $0) / whole) }
            before += entry.bytes
        }
    }

    private func requireHash(_ entry: FileEntry, progress: (Int) throws -> Void) throws {
        let digest = try Sha256.of(file(entry), progress: progress)
        if digest != entry.sha256 {
            throw EdgeError.bundle(
                "\(entry.path) is not the file that was exported: its sha256 is \(digest.prefix(12))…")
        }
    }
}

/// Of what is a file; a link counts as what it leads to.
func fileSize(_ file: URL) -> Int? {
    let found = try? FileManager.default.attributesOfItem(atPath: file.resolvingSymlinksInPath().path)
    guard found?[.type] as? FileAttributeType == .typeRegular else { return nil }
    return (found?[.size] as? NSNumber)?.intValue
}

/// Throws EdgeError.
func readable(_ file: URL, mapped: Bool = false) throws -> Data {
    do {
        return try Data(contentsOf: file, options: mapped ? .alwaysMapped : [])
    } catch {
        throw EdgeError.bundle("\(file.lastPathComponent) cannot be read: \(error.localizedDescription)")
    }
}
