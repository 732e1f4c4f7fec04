// Stand-in for UIKit: the declarations that the app uses, to type-check against.
import Foundation

@MainActor public final class UIApplication {
    nonisolated public static let didReceiveMemoryWarningNotification = Notification.Name("")
}
