import static org.junit.Assert.*

import org.junit.Before
import org.junit.Test

class ContinuousDeliveryTest extends Declarative {
    public static final String FILE = 'cluster/jenkins/CD/Jenkinsfile'
    public static final Map PARAMS = [MODEL: 'soundstage-sounds', REGISTRY: '/registry', ASK: true]

    @Before void before() { setUp() }

    @Test void fromAudioToTheModelThatIsLive() {
        assertEquals('SUCCESS', run(FILE, PARAMS))
        assertEquals(['Train', 'Evaluate', 'Package', 'Canary', 'Approve', 'Promote'], reached)
        assertEquals(['train-sounds', 'gate', 'export-model', 'canary', 'promote', 'verify-live'], made())
        assertEquals(1, called.count('input'))
    }

    @Test void theGateRefusesAWorseModel() {
        failing = ['make gate']
        assertEquals('FAILURE', run(FILE, PARAMS))
        assertEquals(['train-sounds', 'gate'], made())
        assertFalse(called.contains('input'))
    }

    @Test void aCandidateThatSaysSomethingElseIsNotPromoted() {
        failing = ['make canary']
        assertEquals('FAILURE', run(FILE, PARAMS))
        assertFalse(made().contains('promote'))
        assertFalse('nothing is live yet', made().contains('rollback'))
    }

    @Test void aModelThatIsWorseLiveGoesBack() {
        failing = ['make verify-live']
        assertEquals('FAILURE', run(FILE, PARAMS))
        assertEquals('rollback', made().last())
    }

    @Test void nobodyIsAskedWhereThatIsWanted() {
        assertEquals('SUCCESS', run(FILE, PARAMS + [ASK: false]))
        assertFalse(called.contains('input'))
        assertTrue(made().contains('promote'))
    }

    @Test void noCommandHoldsTheKey() {
        run(FILE, PARAMS)
        assertEquals(['soundstage-api-key'] * 2, credentials)
        assertTrue(commands.findAll { it.contains(SECRET) }.isEmpty())
    }
}
