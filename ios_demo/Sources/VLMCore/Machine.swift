// What the system tells of itself: the memory that this process takes and may take, and the machine's name.
import CMachine
import Foundation

public enum Machine {
    /// As its maker calls it: `iPhone17,1`.
    public static var name: String {
        var told = utsname()
        uname(&told)
        return withUnsafeBytes(of: &told.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    /// Bytes that this process may still take before the system ends it; nil where nobody tells.
    public static func availableMemory() -> Int? { told(machine_available_memory()) }

    /// Bytes that it takes now; nil where the system does not tell.
    public static func memory() -> Int? { told(machine_memory()) }

    /// At most, so far.
    public static func peakMemory() -> Int? { told(machine_peak_memory()) }

    private static func told(_ bytes: Int64) -> Int? { bytes < 0 ? nil : Int(bytes) }
}
