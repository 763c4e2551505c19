package fleet.peer;

import org.eclipse.hawkbit.autoconfigure.security.EnableHawkbitManagedSecurityConfiguration;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;

/** hawkBit's device and management APIs, with a database in memory. */
@SpringBootApplication
@EnableHawkbitManagedSecurityConfiguration
public class Start {
    /** Run until the process is ended. */
    public static void main(String[] arguments) {
        SpringApplication.run(Start.class, arguments);
    }
}
