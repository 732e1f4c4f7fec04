// What the system tells of itself: the memory that this process takes and may take, and the machine's name.
import Foundation

#if canImport(Darwin)
    import Darwin
    #if os(iOS)
        import os
    #endif
#endif

public enum Machine {
    /// As its maker calls it: `iPhone17,1`.
    public static var name: String {
        var told = utsname()
        uname(&told)
        return withUnsafeBytes(of: &told.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    /// Bytes that this process may still take before the system ends it; nil where nobody tells.
    public static func availableMemory() -> Int? {
        #if os(iOS) && !targetEnvironment(macCatalyst) && !targetEnvironment(simulator)
            return os_proc_available_memory()
        #elseif os(Linux)
            return field("MemAvailable:", of: "/proc/meminfo")
        #else
            return nil
        #endif
    }

    /// Bytes that it takes now; nil where the system does not tell.
    public static func memory() -> Int? {
        #if canImport(Darwin)
            return footprint().map { Int($0.phys_footprint) }
        #else
            return field("VmRSS:", of: "/proc/self/status")
        #endif
    }

    /// At most, so far.
    public static func peakMemory() -> Int? {
        #if canImport(Darwin)
            return footprint().map { Int($0.ledger_phys_footprint_peak) }
        #else
            return field("VmHWM:", of: "/proc/self/status")
        #endif
    }

    #if canImport(Darwin)
        private static func footprint() -> task_vm_info_data_t? {
            var info = task_vm_info_data_t()
            let words = MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size
            var count = mach_msg_type_number_t(words)
            let status = withUnsafeMutablePointer(to: &info) {
                $0.withMemoryRebound(to: integer_t.self, capacity: words) {
                    task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
                }
            }
            return status == KERN_SUCCESS ? info : nil
        }
    #else
        private static func field(_ name: String, of file: String) -> Int? {
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else { return nil }
            let line = text.split(separator: "\n").first { $0.hasPrefix(name) }
            return line.flatMap { Int($0.filter(\.isNumber)) }.map { $0 << 10 }
        }
    #endif
}
